"""An S3 server with one bucket and one user, whose access key it prints as JSON when it is ready: `s3_server.py PORT`.
Each line of its input asks for the keys of all objects. Signatures are checked. Runs on requirements-iceberg.txt."""

import json
import sys
import urllib.request

import boto3
from moto.server import ThreadedMotoServer

port = int(sys.argv[1])
server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
server.start()
url = f"http://127.0.0.1:{port}"


def client(service, key):
    names = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **names)


iam = client("iam", {"AccessKeyId": "anybody", "SecretAccessKey": "at first"})
iam.create_user(UserName="fletching")
allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
iam.put_user_policy(UserName="fletching", PolicyName="everything", PolicyDocument=policy)
key = iam.create_access_key(UserName="fletching")["AccessKey"]
headers = {"Content-Type": "text/plain"}
urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", headers)).close()
s3 = client("s3", key)
s3.create_bucket(Bucket="features")
print(json.dumps({"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}), flush=True)
for _ in sys.stdin:
    found = s3.list_objects_v2(Bucket="features").get("Contents", [])
    print(json.dumps([one["Key"] for one in found]), flush=True)
