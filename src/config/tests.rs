use super::*;
use clap::FromArgMatches;

fn serve(arguments: &[&str]) -> ServeArgs {
    let command = ServeArgs::augment_args(clap::Command::new("serve").no_binary_name(true));
    ServeArgs::from_arg_matches(&command.get_matches_from(arguments)).unwrap()
}

fn resolve(arguments: &[&str]) -> Result<Settings> {
    Settings::resolve(serve(arguments))
}

fn with_file(toml: &str, arguments: &[&str]) -> Result<Settings> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("fletching.toml");
    std::fs::write(&file, toml).unwrap();
    let mut all = vec!["--config", file.to_str().unwrap()];
    all.extend(arguments);
    resolve(&all)
}

#[test]
fn defaults_are_valid() {
    let settings = resolve(&[]).unwrap();
    assert_eq!(settings.data_dir, Path::new("./data"));
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8815");
    assert_eq!(settings.online, OnlineSetting::Embedded);
    assert_eq!(settings.warehouse, WarehouseSetting::Local("./data/warehouse".into()));
    assert_eq!(settings.catalog, CatalogSetting::Sqlite("./data/catalog.db".into()));
    assert_eq!(settings.limits.message_bytes_max, 64 << 20);
    assert_eq!(settings.http_listen.map(|address| address.to_string()).as_deref(), Some("127.0.0.1:8816"));
    assert_eq!(resolve(&["--http-listen", "off"]).unwrap().http_listen, None);
    assert_eq!(resolve(&[]).unwrap().optimize_interval, None);
    let hourly = resolve(&["--optimize-interval", "1h"]).unwrap().optimize_interval;
    assert_eq!(hourly, Some(Duration::from_secs(60 * 60)));
    assert!(resolve(&["--http-listen", "0.0.0.0:8816"]).is_ok(), "it tells nothing of what is stored");
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let toml = "data_dir = '/file'\nconnections_max = 7\ninsecure = true\ncache_ttl = '1m'";
    let settings = with_file(toml, &["--data-dir", "/flag", "--listen", "0.0.0.0:1"]).unwrap();
    assert_eq!(settings.data_dir, Path::new("/flag"));
    assert_eq!(settings.warehouse, WarehouseSetting::Local("/flag/warehouse".into()));
    assert_eq!(settings.limits.connections_max, 7);
    assert_eq!(settings.cache_ttl, Duration::from_secs(60));
    assert_eq!(settings.drain_timeout, Duration::from_secs(30));
}

#[test]
fn who_is_asked_for_users_may_listen_to_all() {
    let all =
        |arguments: &[&str]| resolve(&[&["--listen", "0.0.0.0:1"], arguments].concat()).unwrap().security;
    let users = all(&["--users-file", "users"]);
    assert_eq!(users.users_file.as_deref(), Some(Path::new("users")));
    let tls = ["--tls-cert", "c", "--tls-key", "k"];
    let certificates = all(&[&tls[..], &["--tls-client-ca", "a"]].concat());
    assert_eq!(certificates.tls.unwrap().client_ca.as_deref(), Some(Path::new("a")));
    let everywhere = "0.0.0.0:1".parse().unwrap();
    assert!(users.is_readable_on_the_way(everywhere));
    assert!(!users.is_readable_on_the_way("127.0.0.1:1".parse().unwrap()));
    assert!(!all(&[&tls[..], &["--users-file", "users"]].concat()).is_readable_on_the_way(everywhere));
}

#[test]
fn every_setting_has_its_environment_variable() {
    let command = ServeArgs::augment_args(clap::Command::new("serve"));
    for argument in command.get_arguments() {
        let variable = format!("FLETCHING_{}", argument.get_id().as_str().to_uppercase());
        assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
    }
}

#[test]
fn a_bad_setting_is_one_line_that_names_its_key() {
    let cases: &[(&[&str], &str)] = &[
        (&["--memory-limit", "2 GBB"], "memory_limit: '2 GBB' is not a size"),
        (&["--memory-limit", "0%"], "memory_limit: '0%' is not between"),
        (&["--listen", "8815"], "listen: '8815' is not an address"),
        (&["--endpoints", "0"], "endpoints: '0' is not a positive whole number"),
        (&["--endpoints", "65"], "endpoints: '65' is more than 64"),
        (&["--advertise", "grpc://a:1,b"], "advertise: 'b' is no location such as grpc://host:8815"),
        (&["--advertise", "grpc://a"], "advertise: 'grpc://a' is no location"),
        (&["--advertise", "grpc://me:secret@a:1"], "advertise: a location tells clients where to go"),
        (&["--listen", "0.0.0.0:8815"], "listen: 0.0.0.0:8815 can be reached from other machines"),
        (&["--listen", "0.0.0.0:8815", "--tls-cert", "c", "--tls-key", "k"], "listen: 0.0.0.0:8815 can be"),
        (&["--users-file", ""], "users_file: an empty path"),
        (&["--token-ttl", "0s"], "token_ttl: '0s' is less than a second"),
        (&["--ticket-ttl", "long"], "ticket_ttl: 'long' is not a duration"),
        (&["--tls-cert", "c"], "tls_key: a certificate is of no use without its key"),
        (&["--tls-key", "k"], "tls_cert: a key is of no use without its certificate"),
        (&["--tls-client-ca", "a"], "tls_client_ca: clients show certificates over TLS only"),
        (&["--http-listen", "on"], "http_listen: 'on' is not an address"),
        (&["--queries-max", "0"], "queries_max: '0' is not a positive whole number"),
        (&["--queries-queued-max", "many"], "queries_queued_max: 'many' is not a whole number"),
        (&["--queue-timeout", "soon"], "queue_timeout: 'soon' is not a duration"),
        (&["--online", "rediss://h"], "online: rediss:// (Redis over TLS)"),
        (&["--online", "mongodb://h"], "online: mongodb:// is no online store"),
        (&["--online", "redis+unix://"], "online: the redis+unix:// URL names no socket"),
        (&["--online", "redis+unix:///"], "online: the redis+unix:// URL names no socket"),
        (&["--online", "redis+unix://run/redis.sock"], "online: the redis+unix:// URL names no socket"),
        (&["--online", "redis+unix:run/redis.sock"], "online: the redis+unix:// URL names no socket"),
        (&["--online", "redis+unix:///s?db=x"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis+unix:///s?password=x"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis+unix:///s?user=x"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis+unix:///s?user=&pass=x"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis+unix:///s?db=1&db=2"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis+unix:///s?pass=x#y"], "online: behind the path of a redis+unix:// URL"),
        (&["--online", "redis-cluster://"], "online: node 1 of the redis-cluster:// URL is not host:port"),
        (&["--online", "redis-cluster://a:1,,b:2"], "online: node 2 of the redis-cluster:// URL"),
        (&["--online", "redis-cluster://a:1,b:x"], "online: node 2 of the redis-cluster:// URL"),
        (&["--online", "redis-cluster://a:1/3"], "online: a Redis Cluster has no numbered databases"),
        (&["--online", "redis-cluster://u:p/q@a:1"], "online: "),
        (&["--warehouse", "gs://bucket"], "warehouse: gs:// is not supported"),
        (&["--warehouse", "s3:///prefix"], "warehouse: the s3:// URL names no bucket"),
        (&["--warehouse", "s3://me:secret@host/prefix"], "warehouse: the s3:// URL names no bucket"),
        (&["--warehouse", "s3://bucket/a//b"], "warehouse: the prefix of the s3:// URL has an empty part"),
        (&["--warehouse", "s3://bucket/../b"], "warehouse: the prefix of the s3:// URL has an empty part"),
        (&["--s3-endpoint", "localhost:9000"], "s3_endpoint: no URL such as"),
        (&["--s3-endpoint", "http://me:secret@h"], "s3_endpoint: credentials do not belong here"),
        (&["--s3-region", "no where"], "s3_region: 'no where' is no region"),
        (&["--catalog", "mysql://h/d"], "catalog: no catalog: name sqlite:<path>"),
        (&["--catalog", "http://"], "catalog: no URL such as https://catalog.internal"),
        (&["--catalog", "https://me:secret@h/"], "catalog: credentials do not belong here"),
        (&["--catalog", "https://h/?token=t"], "catalog: 'token' is no option of a REST catalog's URL"),
        (&["--catalog-token-file", "t"], "catalog_token_file: only a REST catalog is shown a token"),
        (&["--catalog", "postgres://h"], "catalog: the postgresql:// URL names no database"),
        (&["--catalog", "postgresql:///db"], "catalog: the postgresql:// URL names no host"),
        (&["--catalog", "postgresql:db"], "catalog: the URL is not postgresql://"),
        (
            &["--catalog", "postgresql://h/db?password=p"],
            "catalog: 'password' is no option of a postgresql:// URL",
        ),
        (&["--cache-ttl", "soon"], "cache_ttl: 'soon' is not a duration"),
        (&["--log-format", "xml"], "log_format: 'xml' is neither"),
        (&["--log-level", "a=b=c"], "log_level: 'a=b=c' is no level"),
        (&["--connections-max", "0"], "connections_max: '0' is not a positive"),
        (&["--message-size-max", "1"], "message_size_max: '1' is not between"),
        (&["--insecure=maybe"], "insecure: 'maybe' is neither"),
        (&["--config", "/does/not/exist"], "config: cannot read /does/not/exist"),
    ];
    for (arguments, expected) in cases {
        let error = resolve(arguments).unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{arguments:?}: {error}");
    }
}

#[test]
fn a_bad_file_is_one_line_that_names_the_key_and_the_line() {
    for (toml, expected) in [
        ("data_dir = 'x'\nlisten_on = 'y'", "line 2: unknown field `listen_on`"),
        ("data_dir = [1]", "line 1: invalid type: sequence"),
        ("data_dir = ", "line 1:"),
    ] {
        let error = with_file(toml, &[]).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{toml}: {error}");
    }
}

#[test]
fn no_password_is_ever_shown() {
    let arguments = ["--online", "redis://app:hunter2@redis.internal:6379/1?token=hunter2"];
    let settings = resolve(&arguments).unwrap();
    let online = &settings.online;
    let shown = [format!("{:?}", serve(&arguments)), format!("{settings:?}"), online.to_string()];
    assert!(shown.iter().all(|text| !text.contains("hunter2")), "{shown:?}");
    assert_eq!(online.to_string(), "redis://app:***@redis.internal:6379/1");
    let socket =
        resolve(&["--online", "redis+unix:///run/redis.sock?db=1&user=app&pass=hunter2"]).unwrap().online;
    assert_eq!(socket.to_string(), "redis+unix:///run/redis.sock");
    let wrong = resolve(&["--online", "reddis://app:hunter2@host"]).unwrap_err().to_string();
    assert!(!wrong.contains("hunter2"), "{wrong}");

    let settings = resolve(&["--catalog", "postgres://app:hunter2@db:5433/iceberg?sslmode=require"]).unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
    assert_eq!(settings.catalog.to_string(), "postgres://app:***@db:5433/iceberg");
    for wrong in
        ["hunter2://app:hunter2@db/d", "postgresql://app:hunter2/@db/d", "postgresql://app:hunter2@/d"]
    {
        let error = resolve(&["--catalog", wrong]).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_cluster_is_named_by_some_of_its_nodes() {
    let online = |text: &str| resolve(&["--online", text]).unwrap().online;
    let seeds = |text: &str| match online(text) {
        OnlineSetting::RedisCluster(seeds) => seeds.iter().map(ToString::to_string).collect::<Vec<_>>(),
        other => panic!("{other}"),
    };
    assert_eq!(seeds("redis-cluster://h:7000"), ["redis://h:7000"]);
    let three = "redis-cluster://app:hunter2@a:1,b,[::1]:3/";
    assert_eq!(
        seeds(three),
        ["redis://app:hunter2@a:1", "redis://app:hunter2@b", "redis://app:hunter2@[::1]:3"]
    );
    assert_eq!(online(three).to_string(), "redis-cluster://app:***@a:1,b,[::1]:3");
    assert_eq!(format!("{:?}", online("redis-cluster://a:1,b:2")), "redis-cluster://a:1,b:2");
    let wrong = resolve(&["--online", "redis-cluster://:hunter2@:1"]).unwrap_err().to_string();
    assert!(!wrong.contains("hunter2"), "{wrong}");
}

#[test]
fn sizes() {
    for (text, bytes) in [("0", 0), ("10", 10), ("1.5KiB", 1536), ("2 GB", 2_000_000_000), ("3mib", 3 << 20)]
    {
        assert_eq!(size_bytes(text).unwrap(), bytes, "{text}");
    }
    for text in ["", "x", "1.2.3", "-1", "9999999999TB"] {
        assert!(size_bytes(text).is_err(), "{text}");
    }
    assert_eq!(memory("unlimited").unwrap(), None);
    assert!(memory("100%").unwrap() > memory("50%").unwrap());
}
