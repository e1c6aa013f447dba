//! One caller: asks for the features of random entities, by one `DoGet` a call.

use std::fmt::Write;
use std::time::Instant;

use arrow_flight::Ticket;
use arrow_flight::flight_service_client::FlightServiceClient;
use clap::Args;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::Failure;
use crate::answers::{Check, Checker};
use crate::entities::Entities;
use crate::record::{Record, Window};

/// Who is called.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// http://HOST:PORT
    #[arg(long)]
    url: String,
    /// The `authorization` header, as in "Bearer …"
    #[arg(long)]
    authorization: Option<String>,
}

impl Server {
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        let endpoint = Endpoint::from_shared(self.url.clone())?.tcp_nodelay(true);
        Ok(endpoint.connect().await.map_err(|error| format!("{}: {error:?}", self.url))?)
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            let value: MetadataValue<Ascii> = authorization.parse()?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// What is asked of whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    #[command(flatten)]
    pub(crate) server: Server,
    /// One placeholder takes the entities' keys
    #[arg(long, default_value = "SELECT * FROM LATEST(user_features, ?)")]
    pub(crate) query: String,
    /// Entities that a call or message asks for
    #[arg(long, default_value_t = 1)]
    pub(crate) keys: usize,
    /// Entities there are: keys are drawn from 0 up to here, each as likely
    #[arg(long, default_value_t = 100_000)]
    entities: u64,
    /// What of an answer must be right
    #[arg(long, value_enum, default_value = "values")]
    check: Check,
    /// Seconds before anything counts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

impl Target {
    pub(crate) fn client(channel: Channel) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn entities(&self, seed: u64) -> Entities {
        Entities::new(self.entities, seed)
    }

    pub(crate) fn checker(&self) -> Checker {
        Checker::new(self.check)
    }

    pub(crate) fn window(&self) -> Window {
        Window::starting_now(self.warm_up, self.seconds)
    }
}

/// A connection, shared or not, and everything that calls need.
#[derive(Debug)]
pub(crate) struct Caller {
    target: Target,
    client: FlightServiceClient<Channel>,
    entities: Entities,
    checker: Checker,
    /// The ticket up to the first key.
    opening: String,
    pub(crate) record: Record,
}

impl Caller {
    pub(crate) fn new(target: &Target, channel: Channel, seed: u64, record: Record) -> Self {
        let query = serde_json::Value::from(target.query.as_str());
        Self {
            target: target.clone(),
            client: Target::client(channel),
            entities: target.entities(seed),
            checker: target.checker(),
            opening: format!(r#"{{"query":{query},"parameters":["#),
            record,
        }
    }

    /// One call, which counts from `started`.
    pub(crate) async fn call(&mut self, started: Instant) -> Result<(), Failure> {
        let result = self.get().await;
        self.record.ended(started, result)
    }

    async fn get(&mut self) -> Result<(), Failure> {
        let keys: Vec<u64> = (0..self.target.keys).map(|_| self.entities.draw()).collect();
        let request = self.target.server.request(self.ticket(&keys))?;
        let mut answer = self.client.do_get(request).await?.into_inner();
        let schema = answer.message().await?.ok_or("an answer without a schema")?;
        self.checker.check_schema(&schema)?;
        let mut rows = 0;
        while let Some(data) = answer.message().await? {
            rows += self.checker.check_batch(&data, &keys[rows..])?;
        }
        if rows != keys.len() {
            return Err(format!("{rows} rows for {} keys", keys.len()).into());
        }
        Ok(())
    }

    fn ticket(&self, keys: &[u64]) -> Ticket {
        let mut text = self.opening.clone();
        for (number, key) in keys.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(text, "{comma}{key}").expect("a string takes anything");
        }
        text.push_str("]}");
        Ticket::new(text)
    }
}
