//! What a collector of OpenTelemetry hears: each call within the trace of who made it, and each statement within its call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::FlightDescriptor;
use arrow_flight::encode::FlightDataEncoderBuilder;
use futures::{StreamExt, TryStreamExt, stream};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::support::process::Process;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| pair.value.as_ref().and_then(|value| value.value.as_ref()).map(text);
    pairs.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_hears_of_calls_and_their_statements() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = TraceServiceServer::new(collector.clone());
    let serving =
        Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    let serving = tokio::spawn(serving);

    let server = Process::start(&["--otlp-endpoint", &address]);
    let mut client = server.connect().await;
    client.set_header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
    let sql = "SELECT value FROM generate_series(1, 10)";
    let info = client.execute(sql.to_owned(), None).await.unwrap();
    let rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    rows.try_collect::<Vec<_>>().await.unwrap();
    client.execute("SELECT * FROM nowhere".to_owned(), None).await.unwrap_err();
    // A statement that runs while its answer is read.
    let exchanged = "SELECT value FROM generate_series(1, 20) WHERE value <= ?";
    let descriptor = FlightDescriptor::new_cmd(format!(r#"{{"query": "{exchanged}"}}"#));
    let most: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let question = RecordBatch::try_from_iter([("0", most)]).unwrap();
    let questions = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(descriptor));
    let questions = questions.build(stream::iter([Ok(question)])).map(Result::unwrap);
    let mut request = Request::new(questions);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    let answer = client.inner_mut().do_exchange(request).await.unwrap().into_inner();
    answer.try_collect::<Vec<_>>().await.unwrap();
    server.stop(); // which sends what is left

    let requests = collector.0.lock().unwrap().clone();
    serving.abort();
    let resource = requests[0].resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(attributes(&resource.attributes)["service.name"], "fletching");
    let spans: Vec<Span> = { requests.into_iter() }
        .flat_map(|request| request.resource_spans)
        .flat_map(|spans| spans.scope_spans)
        .flat_map(|spans| spans.spans)
        .filter(|span| hex(&span.trace_id) == TRACE)
        .collect();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let calls = [
        named("arrow.flight.protocol.FlightService/DoGet"),
        named("arrow.flight.protocol.FlightService/GetFlightInfo"),
    ]
    .concat();
    assert_eq!(calls.len(), 3, "{spans:#?}");
    for call in &calls {
        assert_eq!(hex(&call.parent_span_id), PARENT);
        let attributes = attributes(&call.attributes);
        assert!(attributes["client.address"].starts_with("127.0.0.1:"), "{attributes:?}");
        assert_eq!(attributes["rpc.service"], "arrow.flight.protocol.FlightService");
    }
    let statements = named("query");
    let found = |sql: &str| {
        let ours = |span: &&&Span| attributes(&span.attributes)["db.query.text"] == sql;
        *statements.iter().find(ours).unwrap_or_else(|| panic!("{sql} is not in {spans:#?}"))
    };
    let (ran, failed, asked) = (found(sql), found("SELECT * FROM nowhere"), found(exchanged));
    let exchange = named("arrow.flight.protocol.FlightService/DoExchange");
    assert_eq!(asked.parent_span_id, exchange[0].span_id);
    assert_eq!(attributes(&asked.attributes)["db.response.returned_rows"], "7");
    assert_eq!(ran.parent_span_id, calls[0].span_id);
    assert_eq!(attributes(&ran.attributes)["db.response.returned_rows"], "10");
    assert_eq!(ran.events.iter().map(|event| event.name.as_str()).collect::<Vec<_>>(), ["running"]);
    assert!(calls[0].start_time_unix_nano <= ran.start_time_unix_nano);
    assert!(ran.start_time_unix_nano <= ran.end_time_unix_nano);
    assert_eq!(attributes(&failed.attributes)["error.type"], "not_found");
    assert_eq!(failed.status.as_ref().unwrap().code, StatusCode::Error as i32);
}
