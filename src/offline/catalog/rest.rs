//! A server that speaks Iceberg's REST catalog protocol.
//!
//! A new table is registered with the metadata that we wrote for it. A change is sent as what differs between two
//! metadata, with what it depends on: the table, its branches and tags, its schema, its layout. The protocol knows no
//! condition on properties, so of two servers that set the same one at the same moment the later wins.
//!
//! `iceberg-catalog-rest` is not used: it takes only the changes that iceberg-rust's own transactions make, which neither
//! replace files nor expire snapshots.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};

use iceberg::spec::{MAIN_BRANCH, SnapshotReference, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::Entry;
use crate::error::{Error, Result};
use crate::model::TableName;

/// How long it may take until there is a connection, and until a request is answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Of a listing, which tables are asked about at a time.
const ASKED_MAX: usize = 16;

/// What the server calls "the last one added".
const LAST_ADDED: i32 = -1;

/// The server, asked as one client.
#[derive(Debug, Clone)]
pub(in crate::offline) struct RestCatalog {
    client: Client,
    /// What stands before every resource.
    base: Url,
    token_file: Option<PathBuf>,
    /// What errors call it.
    name: Arc<str>,
}

/// What a server said: `body` is JSON, or null where there is none.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl RestCatalog {
    /// Asks the server at `url` how it wants to be spoken to. `token_file` is read for every request, so that a token may
    /// be renewed.
    pub(super) async fn open(url: &Url, token_file: Option<PathBuf>) -> Result<Self> {
        let base = versioned(url.clone());
        let mut shown = url.clone();
        shown.set_query(None);
        let name: Arc<str> = shown.as_str().trim_end_matches('/').into();
        // A redirected POST would become a GET, whose answer says nothing of a change.
        let client = Client::builder().redirect(Policy::none());
        let client = client.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).build();
        let client =
            client.map_err(|e| Error::internal("there is no HTTP client for the catalog").with_source(e))?;
        let mut catalog = Self { client, base, token_file, name };
        let mut config = catalog.resource(&["config"]);
        config.set_query(url.query());
        let answer = catalog.ask(Method::GET, config, None).await?;
        if answer.status != StatusCode::OK {
            return Err(catalog.refused(&answer));
        }
        if let Some(elsewhere) = answer.body["overrides"]["uri"].as_str() {
            let elsewhere = Url::parse(elsewhere).ok().filter(Url::has_host);
            catalog.base = versioned(elsewhere.ok_or_else(|| catalog.strange("no URL of itself"))?);
        }
        // What the server insists on comes before what it proposes. It is escaped already.
        let prefix = ["overrides", "defaults"].iter().find_map(|kind| answer.body[kind]["prefix"].as_str());
        if let Some(prefix) =
            prefix.map(|prefix| prefix.trim_matches('/')).filter(|prefix| !prefix.is_empty())
        {
            let path = format!("{}/{prefix}", catalog.base.path().trim_end_matches('/'));
            catalog.base.set_path(&path);
        }
        Ok(catalog)
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<String>> {
        let listed = self.listed(self.resource(&["namespaces"]), "namespaces").await?;
        let listed = listed.ok_or_else(|| self.strange("no namespaces"))?;
        // A namespace within another is no schema.
        let of_one = |levels: &Value| match levels.as_array().map(Vec::as_slice) {
            Some([Value::String(name)]) if is_addressable(name) => Some(name.clone()),
            _ => None,
        };
        let mut names: Vec<String> = listed.iter().filter_map(of_one).collect();
        names.sort();
        Ok(names)
    }

    pub(super) async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        addressable(namespace)?;
        let body = json!({ "namespace": [namespace], "properties": {} });
        let answer = self.ask(Method::POST, self.resource(&["namespaces"]), Some(body)).await?;
        self.done(&answer, &[StatusCode::CONFLICT])
    }

    pub(super) async fn drop_namespace(&self, namespace: &str) -> Result<bool> {
        addressable(namespace)?;
        let answer = self.ask(Method::DELETE, self.resource(&["namespaces", namespace]), None).await?;
        self.done(&answer, &[StatusCode::CONFLICT, StatusCode::NOT_FOUND])
    }

    /// Of a table that the server refuses to tell of, the metadata is where the server refuses it: reading it fails, and
    /// that of others does not.
    pub(super) async fn tables(&self) -> Result<Vec<Entry>> {
        let mut names = Vec::new();
        for schema in self.namespaces().await? {
            let listing = self.resource(&["namespaces", &schema, "tables"]);
            // None where the namespace went meanwhile.
            for table in self.listed(listing, "identifiers").await?.unwrap_or_default() {
                let name = table["name"].as_str().ok_or_else(|| self.strange("a table without a name"))?;
                if is_addressable(name) {
                    names.push(TableName::new(schema.clone(), name));
                }
            }
        }
        let entries = futures::stream::iter(names).map(|name| async move {
            let answer = self.ask(Method::GET, self.table_with_refs(&name)?, None).await?;
            let location = self.location_in(&answer).unwrap_or_else(|error| {
                tracing::warn!(table = %name, %error, "a table of the catalog cannot be read");
                self.table(&name).ok().map(String::from)
            });
            Ok::<_, Error>(location.map(|metadata_location| Entry { name, metadata_location }))
        });
        let mut entries: Vec<Entry> =
            entries.buffer_unordered(ASKED_MAX).try_filter_map(async |entry| Ok(entry)).try_collect().await?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    pub(super) async fn metadata_location(&self, name: &TableName) -> Result<Option<String>> {
        self.location_in(&self.ask(Method::GET, self.table_with_refs(name)?, None).await?)
    }

    /// Of the metadata itself as little as can be: it is read from where it is stored.
    fn table_with_refs(&self, name: &TableName) -> Result<Url> {
        let mut table = self.table(name)?;
        table.set_query(Some("snapshots=refs"));
        Ok(table)
    }

    fn location_in(&self, answer: &Answer) -> Result<Option<String>> {
        if !self.done(answer, &[StatusCode::NOT_FOUND])? {
            return Ok(None);
        }
        match answer.body["metadata-location"].as_str() {
            Some(location) => Ok(Some(location.to_owned())),
            None => Err(self.strange("a table whose metadata is nowhere")),
        }
    }

    /// Adds a table whose metadata is at `location`. `false` means that the name is taken.
    pub(super) async fn register(&self, name: &TableName, location: &str) -> Result<bool> {
        self.table(name)?;
        let register = || {
            let body = json!({ "name": name.name, "metadata-location": location });
            self.ask(Method::POST, self.resource(&["namespaces", &name.schema, "register"]), Some(body))
        };
        let mut answer = register().await?;
        if answer.is_absence() {
            self.create_namespace(&name.schema).await?;
            answer = register().await?;
        }
        self.done(&answer, &[StatusCode::CONFLICT])
    }

    /// Makes of `current` what `next` is. `false` means that somebody else changed the table first.
    pub(super) async fn commit(
        &self,
        name: &TableName,
        current: &TableMetadata,
        next: &TableMetadata,
    ) -> Result<bool> {
        let identifier = json!({ "namespace": [name.schema], "name": name.name });
        let (requirements, updates) = (requirements(current)?, updates(current, next)?);
        let body = json!({ "identifier": identifier, "requirements": requirements, "updates": updates });
        let answer = self.ask(Method::POST, self.table(name)?, Some(body)).await?;
        self.done(&answer, &[StatusCode::CONFLICT, StatusCode::NOT_FOUND])
    }

    /// Removes a table, not its files. The protocol has no condition for it: what is looked at just before is whether the
    /// table changed.
    pub(super) async fn remove(&self, name: &TableName, location: &str) -> Result<bool> {
        if self.metadata_location(name).await?.as_deref() != Some(location) {
            return Ok(false);
        }
        let mut table = self.table(name)?;
        table.set_query(Some("purgeRequested=false"));
        let answer = self.ask(Method::DELETE, table, None).await?;
        self.done(&answer, &[StatusCode::NOT_FOUND])
    }

    /// Everything that a listing has, over all its pages; `None` where what it is of does not exist.
    async fn listed(&self, listing: Url, key: &str) -> Result<Option<Vec<Value>>> {
        let mut all = Vec::new();
        let mut page = String::new();
        loop {
            let mut url = listing.clone();
            // Servers that know no pages answer all at once.
            url.query_pairs_mut().append_pair("pageToken", &page);
            let mut answer = self.ask(Method::GET, url, None).await?;
            if !self.done(&answer, &[StatusCode::NOT_FOUND])? {
                return Ok(None);
            }
            match answer.body.get_mut(key).map(Value::take) {
                Some(Value::Array(found)) => all.extend(found),
                _ => return Err(self.strange("a listing of nothing")),
            }
            match answer.body["next-page-token"].as_str() {
                Some(next) if !next.is_empty() && next != page => page = next.to_owned(),
                _ => return Ok(Some(all)),
            }
        }
    }

    fn table(&self, name: &TableName) -> Result<Url> {
        addressable(&name.schema)?;
        addressable(&name.name)?;
        Ok(self.resource(&["namespaces", &name.schema, "tables", &name.name]))
    }

    fn resource(&self, parts: &[&str]) -> Url {
        let mut url = self.base.clone();
        parts.iter().for_each(|part| push(&mut url, part));
        url
    }

    async fn ask(&self, method: Method, url: Url, body: Option<Value>) -> Result<Answer> {
        let mut request = self.client.request(method, url);
        if let Some(file) = &self.token_file {
            let token = std::fs::read_to_string(file).map_err(|e| {
                let file = file.display();
                Error::unavailable(format!("the token for the catalog cannot be read from {file}"))
                    .with_source(e)
            })?;
            request = request.bearer_auth(token.trim());
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let answered = async {
            let response = request.send().await?;
            let location =
                response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
            Ok::<_, reqwest::Error>((response.status(), location, response.bytes().await?))
        };
        let (status, location, bytes) = answered.await.map_err(|e| {
            let name = &self.name;
            Error::unavailable(format!(
                "the catalog at '{name}' does not answer: see whether it is up and can be reached"
            ))
            .with_source(e.without_url())
        })?;
        let body = serde_json::from_slice(&bytes);
        if status.is_success() && !bytes.is_empty() && body.is_err() {
            return Err(self.strange("no JSON"));
        }
        if status.is_redirection() {
            let (name, to) = (&self.name, location.unwrap_or_default());
            return Err(Error::invalid(format!(
                "the catalog at '{name}' answers that it is elsewhere, '{to}': name that address in --catalog"
            )));
        }
        Ok(Answer { status, body: body.unwrap_or_default() })
    }

    /// Whether it is done; not where the server answers one of `not`.
    fn done(&self, answer: &Answer, not: &[StatusCode]) -> Result<bool> {
        match answer.status {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND if !answer.is_absence() => Err(self.refused(answer)),
            status if not.contains(&status) => Ok(false),
            _ => Err(self.refused(answer)),
        }
    }

    fn refused(&self, answer: &Answer) -> Error {
        let (name, status) = (&self.name, answer.status);
        let said = answer.body["error"]["message"].as_str().unwrap_or_default();
        let said = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
        match status {
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => {
                Error::invalid(format!("the catalog at '{name}' does not take this: {said}"))
            }
            StatusCode::NOT_FOUND if answer.is_absence() => {
                Error::invalid(format!("the catalog at '{name}' does not take this: {said}"))
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_ACCEPTABLE | StatusCode::NOT_IMPLEMENTED => {
                Error::unsupported(format!("the catalog at '{name}' has no such request: {said}"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::unavailable(format!(
                "the catalog at '{name}' refuses access ({said}): see --catalog-token-file"
            )),
            _ => Error::unavailable(format!("the catalog at '{name}' failed: {said}")),
        }
    }

    fn strange(&self, what: &str) -> Error {
        Error::corrupt(format!("the catalog at '{}' answers with {what}", self.name))
    }
}

impl Answer {
    /// Whether the catalog says that something does not exist. Whoever else stands between may answer 404 too, and the
    /// catalog does for a file that is missing.
    fn is_absence(&self) -> bool {
        let error = &self.body["error"];
        let is_of_name = error["type"].as_str().is_none_or(|name| name != "NotFoundException");
        self.status == StatusCode::NOT_FOUND && error["code"].as_u64() == Some(404) && is_of_name
    }
}

/// The URL with the protocol's version at the end of its path, and without options.
fn versioned(mut url: Url) -> Url {
    url.set_query(None);
    if !url.path().trim_end_matches('/').ends_with("/v1") {
        push(&mut url, "v1");
    }
    url
}

/// Whether a name can be a part of a path: of some, URLs make others.
fn is_addressable(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(char::is_control)
}

fn addressable(name: &str) -> Result<()> {
    match is_addressable(name) {
        true => Ok(()),
        false => Err(Error::invalid(format!("a REST catalog cannot have the name {name:?}"))),
    }
}

/// Adds a part to the path, escaped where need be.
fn push(url: &mut Url, part: &str) {
    // Only URLs such as `mailto:` have no path, and `--catalog` takes none.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push(part);
    }
}

/// What a change of `metadata` depends on: as much of it as the protocol can say.
fn requirements(metadata: &TableMetadata) -> Result<Vec<TableRequirement>> {
    let mut all = vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: metadata.last_column_id() },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: metadata.default_partition_spec_id() },
        TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id: metadata.default_sort_order_id() },
    ];
    let mut references: BTreeMap<String, Option<i64>> =
        references(metadata)?.into_iter().map(|(name, at)| (name, Some(at.snapshot_id))).collect();
    references.entry(MAIN_BRANCH.to_owned()).or_insert(None);
    all.extend(
        references
            .into_iter()
            .map(|(r#ref, snapshot_id)| TableRequirement::RefSnapshotIdMatch { r#ref, snapshot_id }),
    );
    Ok(all)
}

/// What makes of `current` what `next` is, of all that this store changes: columns, snapshots, and properties.
fn updates(current: &TableMetadata, next: &TableMetadata) -> Result<Vec<TableUpdate>> {
    let mut all = Vec::new();
    if next.current_schema_id() != current.current_schema_id() {
        let schema = next.current_schema();
        let known = current.schema_by_id(schema.schema_id()).is_some();
        if !known {
            all.push(TableUpdate::AddSchema { schema: schema.as_ref().clone() });
        }
        let schema_id = if known { schema.schema_id() } else { LAST_ADDED };
        all.push(TableUpdate::SetCurrentSchema { schema_id });
    }
    let added = next.snapshots().filter(|s| current.snapshot_by_id(s.snapshot_id()).is_none());
    let mut added: Vec<_> = added.collect();
    added.sort_by_key(|snapshot| snapshot.sequence_number());
    all.extend(added.into_iter().map(|s| TableUpdate::AddSnapshot { snapshot: s.as_ref().clone() }));
    let before = references(current)?;
    let moved = references(next)?.into_iter().filter(|(name, at)| before.get(name) != Some(at));
    all.extend(moved.map(|(ref_name, reference)| TableUpdate::SetSnapshotRef { ref_name, reference }));
    let gone = current.snapshots().map(|s| s.snapshot_id()).filter(|id| next.snapshot_by_id(*id).is_none());
    let snapshot_ids: Vec<i64> = gone.collect();
    if !snapshot_ids.is_empty() {
        all.push(TableUpdate::RemoveSnapshots { snapshot_ids });
    }
    let (before, after) = (current.properties(), next.properties());
    let set: HashMap<String, String> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !set.is_empty() {
        all.push(TableUpdate::SetProperties { updates: set });
    }
    let removals: Vec<String> = before.keys().filter(|key| !after.contains_key(*key)).cloned().collect();
    if !removals.is_empty() {
        all.push(TableUpdate::RemoveProperties { removals });
    }
    Ok(all)
}

/// The branches and tags, which iceberg-rust shows in the metadata's JSON alone.
fn references(metadata: &TableMetadata) -> Result<BTreeMap<String, SnapshotReference>> {
    let failed = |e| Error::internal("table metadata does not survive JSON").with_source(e);
    let mut json = serde_json::to_value(metadata).map_err(failed)?;
    match json["refs"].take() {
        Value::Null => Ok(BTreeMap::new()),
        refs => serde_json::from_value(refs).map_err(failed),
    }
}
