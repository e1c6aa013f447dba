use super::*;
use crate::online::tests::redis_cluster::RedisCluster;

fn addresses(clients: &[::redis::Client]) -> Vec<String> {
    let mut addresses: Vec<_> =
        clients.iter().map(|client| client.get_connection_info().addr().to_string()).collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn the_masters_of_a_cluster_are_found_from_any_node() {
    let cluster = RedisCluster::start(3, 1, &[]);
    let mut masters: Vec<String> =
        cluster.nodes[..3].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    masters.sort();
    for url in cluster.urls() {
        let url = url.replace("redis://", "redis://default:any@");
        let server = Server::open_cluster(&[url], Duration::from_secs(10)).unwrap();
        let found = server.masters().await.unwrap();
        assert_eq!(addresses(&found), masters);
        for client in found {
            assert_eq!(client.get_connection_info().redis_settings().password(), Some("any"));
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let _: () = ::redis::cmd("PING").query_async(&mut connection).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_single_server_is_its_only_master() {
    let server = Server::open("redis://app:secret@localhost:1/3", Duration::from_secs(1)).unwrap();
    assert_eq!(server.name(), "redis localhost:1/3");
    let masters = server.masters().await.unwrap();
    assert_eq!(addresses(&masters), ["localhost:1"]);
    assert_eq!(masters[0].get_connection_info().redis_settings().db(), 3);
}
