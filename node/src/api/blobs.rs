//! Routes about blobs: put, get, list, stat and remove.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Json, Response};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_proofs::recipe::RecipeV1;
use spare_proofs::tree::Root;
use tokio_util::io::StreamReader;
use utoipa::{IntoParams, ToSchema};

use super::{ApiError, ErrorBody, Shared, drain};
use crate::catalog::BlobEntry;
use crate::config::Code;
use crate::get::Reader;
use crate::limits::{DELETE_MAX_ROOTS, GETS_MAX, PUTS_MAX};
use crate::node::Node;
use crate::put::PutOptions;

/// A blob, without what it takes to read it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BlobInfo {
    /// Its name.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Unix time in seconds of the put.
    pub created_s: u64,
    /// Identifies this content under this name; also the ETag.
    pub id: String,
}

fn info(name: &str, entry: &BlobEntry) -> BlobInfo {
    BlobInfo {
        name: name.to_owned(),
        bytes: entry.bytes,
        created_s: entry.created_s,
        id: data_encoding::HEXLOWER.encode(&entry.blob_id),
    }
}

/// A blob and how it is stored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BlobStat {
    /// The blob.
    #[serde(flatten)]
    pub blob: BlobInfo,
    /// The code, `k+parity`.
    pub code: String,
    /// Segments it is cut into.
    pub segments: usize,
    /// Bytes that all shards take together.
    pub stored_bytes: u64,
    /// Its providers.
    pub providers: Vec<HolderInfo>,
    /// For each segment, its shards in order; left out unless asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Vec<ShardInfo>>,
    /// Shards that may be lost before data is, by what providers say just now: the worst segment counts. Negative when too few are
    /// there to read the blob.
    pub shards_to_spare: i64,
    /// Shards that may be lost for good before data is: those of providers that are down count as there.
    pub shards_to_lose: i64,
}

/// What a shard's holder says of it just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShardState {
    /// It is there.
    Held,
    /// It is not.
    Lost,
    /// The holder is down.
    Unknown,
}

/// A shard and who holds it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ShardInfo {
    /// The BLAKE3 root of its stored bytes, which is its name.
    pub root: String,
    /// The holder's node key.
    pub node: String,
    /// What the holder says of it.
    pub state: ShardState,
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct StatQuery {
    /// Whether to list every shard.
    #[serde(default)]
    shards: bool,
}

/// A provider of a blob.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HolderInfo {
    /// Its node key.
    pub node: String,
    /// Its operator's name, if its ask is known.
    pub operator: Option<String>,
    /// Whether it answered just now.
    pub up: bool,
    /// Shards of this blob that it says it holds; nothing while it is down.
    pub shards: Option<usize>,
}

/// Lists all blobs.
#[utoipa::path(get, path = "/v1/blobs", responses((status = 200, body = Vec<BlobInfo>), (status = 401, body = ErrorBody)))]
pub(super) async fn list_blobs(State(node): Shared) -> Result<Json<Vec<BlobInfo>>, ApiError> {
    let all = node.client.catalog.all()?;
    Ok(Json(all.iter().map(|(name, entry)| info(name, entry)).collect()))
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct PutQuery {
    /// The code, `data+parity`; the node's default without it.
    #[serde(default)]
    code: Option<String>,
    /// Whether a blob of that name may be replaced.
    #[serde(default)]
    replace: bool,
    /// Highest price of storage that is paid, in credits per TB and month; the node's setting without it.
    #[serde(default)]
    max_price: Option<String>,
}

/// What a put did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PutDone {
    /// The blob.
    #[serde(flatten)]
    pub blob: BlobInfo,
    /// The code, `k+parity`.
    pub code: String,
    /// Shards sent by this put.
    pub shards_sent: u64,
    /// Shards that an earlier, unfinished put had placed.
    pub shards_resumed: u64,
    /// Times that a provider failed and another was chosen.
    pub shards_replaced: u64,
}

/// Stores the request's body under a name. Repeating a put that was cut short resumes it.
#[utoipa::path(put, path = "/v1/blobs/{name}", params(("name" = String, Path, description = "percent-encoded, `/` as `%2F`"), PutQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = PutDone), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 402, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 429, body = ErrorBody), (status = 503, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn put_blob(
    State(node): Shared,
    Path(name): Path<String>,
    Query(query): Query<PutQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<PutDone>), ApiError> {
    let mut body = body.into_data_stream();
    let bytes = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let done = put_body(&node, &name, &query, bytes, &mut body).await;
    if done.is_err() {
        drain(body);
    }
    Ok((StatusCode::CREATED, Json(done?)))
}

async fn put_body(
    node: &Node,
    name: &str,
    query: &PutQuery,
    bytes: Option<u64>,
    body: &mut axum::body::BodyDataStream,
) -> Result<PutDone, ApiError> {
    let code = super::market::code_of(node, query.code.as_ref())?;
    let price_max = super::market::price_max_of(node, query.max_price.as_ref())?;
    if node.client.count("put") >= PUTS_MAX {
        let message = format!("{PUTS_MAX} puts are under way; wait for one to finish");
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", message));
    }
    let listed = node.client.list("put", name);
    let options =
        PutOptions { name: name.to_owned(), geometry: code.0, replace: query.replace, bytes, price_max };
    let source = StreamReader::new(body.map_err(std::io::Error::other));
    let entry = crate::put::put(&node.client, options, source, listed.transfer.clone()).await?;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Ok(PutDone {
        blob: info(name, &entry),
        code: Code(code.0).to_string(),
        shards_sent: count(&listed.transfer.shards_sent),
        shards_resumed: count(&listed.transfer.shards_resumed),
        shards_replaced: count(&listed.transfer.shards_replaced),
    })
}

/// The one byte range that a `Range` header asks for. `None` for none or one in a unit or form that is not supported.
///
/// # Errors
/// The response to send when the range lies outside the `bytes` bytes there are.
pub fn parse_range(
    headers: &HeaderMap,
    etag: &str,
    bytes: u64,
) -> Result<Option<std::ops::Range<u64>>, ApiError> {
    let Some(spec) =
        headers.get(header::RANGE).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("bytes="))
    else {
        return Ok(None);
    };
    if headers.get(header::IF_RANGE).is_some_and(|v| v.to_str().ok() != Some(etag)) {
        return Ok(None);
    }
    let unsatisfiable = || {
        let message = format!("the range lies outside the blob's {bytes} bytes");
        ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "bad_range", message)
    };
    let range = match spec.split_once('-') {
        Some(("", suffix)) => suffix.parse().ok().map(|n: u64| bytes.saturating_sub(n)..bytes),
        Some((start, "")) => start.parse().ok().map(|start: u64| start..bytes),
        Some((start, end)) => start
            .parse()
            .ok()
            .zip(end.parse().ok())
            .map(|(s, e): (u64, u64)| s..e.saturating_add(1).min(bytes)),
        None => None,
    };
    match range {
        Some(range) if range.start < range.end => Ok(Some(range)),
        // Beyond the end; one that is backwards is none at all (RFC 9110, 14.1.1).
        Some(range) if range.start >= bytes => Err(unsatisfiable()),
        _ => Ok(None),
    }
}

/// Reads a blob, or one range of it.
#[utoipa::path(get, path = "/v1/blobs/{name}", params(("name" = String, Path, description = "percent-encoded, `/` as `%2F`"),
        ("Range" = Option<String>, Header, description = "`bytes=FIRST-LAST`, one range")),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 416, body = ErrorBody), (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn get_blob(
    State(node): Shared,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let entry = node.client.catalog.get(&name)?.ok_or_else(|| ApiError::no_blob(&name))?;
    let etag = format!("\"{}\"", info(&name, &entry).id);
    let range = parse_range(&headers, &etag, entry.bytes)?;
    if node.client.count("get") >= GETS_MAX {
        let message = format!("{GETS_MAX} gets are under way; wait for one to finish");
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", message));
    }
    let listed = node.client.list("get", &name);
    let (status, range) = match range {
        Some(range) => (StatusCode::PARTIAL_CONTENT, range),
        None => (StatusCode::OK, 0..entry.bytes),
    };
    let reader = Arc::new(Reader::open(&node.client, &entry).await?);
    let mut parts = Box::pin(reader.read(range.clone()));
    // The first part is awaited, so that a blob that cannot be read is an error response and not a broken body.
    let first = parts.next().await.transpose()?;
    let parts = futures::stream::iter(first.map(Ok)).chain(parts).inspect_ok(move |part| {
        listed.transfer.done_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
    });
    let mut response = Response::new(Body::from_stream(parts));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let text = |text: String| HeaderValue::from_str(&text).expect("numbers and hex are header text");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, text((range.end - range.start).to_string()));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::ETAG, text(etag));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(
            header::CONTENT_RANGE,
            text(format!("bytes {}-{}/{}", range.start, range.end - 1, entry.bytes)),
        );
    }
    Ok(response)
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct DeleteQuery {
    /// Whether to remove also a blob whose shards cannot be named, since its recipe cannot be read. They stay where they are.
    #[serde(default)]
    force: bool,
}

/// Removes a blob and has its shards deleted.
#[utoipa::path(delete, path = "/v1/blobs/{name}", params(("name" = String, Path, description = "percent-encoded, `/` as `%2F`"), DeleteQuery),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn delete_blob(
    State(node): Shared,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    let removed = crate::put::remove(&node.client, &name, query.force).await?;
    if removed { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::no_blob(&name)) }
}

/// Asks each provider of a blob which of its shards it holds. Those that do not answer are left out.
async fn held_shards(node: &Node, recipe: &RecipeV1, entry: &BlobEntry) -> HashMap<PublicKey, HashSet<Root>> {
    let mut assigned: HashMap<PublicKey, Vec<Root>> = HashMap::new();
    for (s, segment) in recipe.segments.iter().enumerate() {
        for (key, root) in entry.placement.holders(s).into_iter().zip(&segment.roots) {
            assigned.entry(key).or_default().push(*root);
        }
    }
    let checks = assigned.into_iter().map(|(key, roots)| async move {
        let mut held = HashSet::new();
        for part in roots.chunks(DELETE_MAX_ROOTS) {
            let peers = &node.client.peers;
            let answer = peers.with_session(&key, async |session| session.holds(part).await).await.ok()?;
            held.extend(part.iter().zip(answer).filter(|(_, held)| *held).map(|(root, _)| *root));
        }
        Some((key, held))
    });
    futures::future::join_all(checks).await.into_iter().flatten().collect()
}

/// Says how a blob is stored, and asks its providers whether they still hold it.
#[utoipa::path(get, path = "/v1/stat/{name}", params(("name" = String, Path, description = "percent-encoded, `/` as `%2F`"), StatQuery),
    responses((status = 200, body = BlobStat), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn stat_blob(
    State(node): Shared,
    Path(name): Path<String>,
    Query(query): Query<StatQuery>,
) -> Result<Json<BlobStat>, ApiError> {
    let entry = node.client.catalog.get(&name)?.ok_or_else(|| ApiError::no_blob(&name))?;
    let recipe = crate::get::load_recipe(&node.client, &entry).await?;
    let segments = 0..recipe.segments.len();
    let book = &node.client.peers.book;
    let held = held_shards(&node, &recipe, &entry).await;
    let holder = |key: &PublicKey| HolderInfo {
        node: key.to_string(),
        operator: book.get(key).map(|p| p.ask.operator),
        up: held.contains_key(key),
        shards: held.get(key).map(HashSet::len),
    };
    let state = |root: &Root, key: &PublicKey| match held.get(key) {
        Some(held) if held.contains(root) => ShardState::Held,
        Some(_) => ShardState::Lost,
        None => ShardState::Unknown,
    };
    let placed = |s: usize| recipe.segments[s].roots.iter().zip(entry.placement.holders(s));
    let shards = |s: usize| -> Vec<ShardInfo> {
        let shard = |(root, key): (&Root, PublicKey)| ShardInfo {
            root: root.to_string(),
            node: key.to_string(),
            state: state(root, &key),
        };
        placed(s).map(shard).collect()
    };
    let worst = |counts: &dyn Fn(ShardState) -> bool| {
        let left = |s| placed(s).filter(|(root, key)| counts(state(root, key))).count() as i64;
        let least = segments.clone().map(left).min();
        least.map_or(recipe.geometry.parity() as i64, |least| least - recipe.geometry.k() as i64)
    };
    let listed = if query.shards { segments.clone() } else { 0..0 };
    Ok(Json(BlobStat {
        blob: info(&name, &entry),
        code: Code(recipe.geometry).to_string(),
        segments: recipe.segments.len(),
        stored_bytes: recipe.stored_bytes(),
        providers: entry.placement.providers().iter().map(holder).collect(),
        shards: listed.map(shards).collect(),
        shards_to_spare: worst(&|state| state == ShardState::Held),
        shards_to_lose: worst(&|state| state != ShardState::Lost),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_http_defines_them() {
        let range = |spec: &str, if_range: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_str(spec).unwrap());
            if let Some(tag) = if_range {
                headers.insert(header::IF_RANGE, HeaderValue::from_str(tag).unwrap());
            }
            parse_range(&headers, "\"a\"", 100).map_err(|e| e.code)
        };
        assert_eq!(range("bytes=0-0", None), Ok(Some(0..1)));
        assert_eq!(range("bytes=90-200", None), Ok(Some(90..100)));
        assert_eq!(range("bytes=90-", None), Ok(Some(90..100)));
        assert_eq!(range("bytes=-10", None), Ok(Some(90..100)));
        assert_eq!(range("bytes=100-", None), Err("bad_range"));
        assert_eq!(range("bytes=-0", None), Err("bad_range"));
        assert_eq!(range("bytes=5-2", None), Ok(None));
        assert_eq!(range("bytes=1-2,4-5", None), Ok(None), "several ranges are answered whole");
        assert_eq!(range("lines=1-2", None), Ok(None));
        assert_eq!(range("bytes=0-18446744073709551615", None), Ok(Some(0..100)));
        assert_eq!(range("bytes=5-9", Some("\"a\"")), Ok(Some(5..10)));
        assert_eq!(range("bytes=5-9", Some("\"b\"")), Ok(None), "the blob changed: send it whole");
    }
}
