//! The HTTP API as a client sees it.

use std::path::{Path, PathBuf};

use reqwest::{Client, Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use crate::api::ErrorBody;
use crate::home::Home;

/// An error that the node reported.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Reported {
    /// Stable code.
    pub code: String,
    /// For people.
    pub message: String,
}

/// The node did not answer.
#[derive(Debug, thiserror::Error)]
#[error("no node answers for {home}; start it with `spare serve`")]
struct NoNode {
    home: PathBuf,
}

/// The stable code of an error, for `--json`.
pub(super) fn code_of(error: &anyhow::Error) -> &str {
    match error.downcast_ref::<Reported>() {
        Some(reported) => &reported.code,
        None if error.is::<NoNode>() => "no_node",
        None => "failed",
    }
}

/// Whether the command was used wrongly, as against that it failed.
pub(super) fn is_misuse(error: &anyhow::Error) -> bool {
    use crate::config::{ConfigError, Origin};
    let by_flag = |error: &ConfigError| {
        matches!(
            error,
            ConfigError::UnknownKey { origin: Origin::Flag, .. }
                | ConfigError::Value { origin: Origin::Flag, .. }
        )
    };
    error.downcast_ref::<ConfigError>().is_some_and(by_flag)
        || error
            .downcast_ref::<Reported>()
            .is_some_and(|reported| matches!(reported.code.as_str(), "bad_name" | "not_confirmed"))
}

/// A client of one node's API.
#[derive(Clone)]
pub struct ApiClient {
    http: Client,
    base: Url,
    token: String,
    home: PathBuf,
}

impl ApiClient {
    /// The API of the node that runs on `home`.
    ///
    /// # Errors
    /// When there is no node, or it does not run.
    pub fn of_home(home: &Home) -> anyhow::Result<Self> {
        let token = home.token()?;
        let no_node = || NoNode { home: home.path().to_owned() };
        let addr = std::fs::read_to_string(home.file("api.addr")).map_err(|_| no_node())?;
        Self::new(&addr, token, home.path())
    }

    /// The API at `addr`.
    ///
    /// # Errors
    /// When `addr` is no address.
    pub fn new(addr: &str, token: String, home: &Path) -> anyhow::Result<Self> {
        let base = Url::parse(&format!("http://{}/", addr.trim()))?;
        // The node is on this machine: a proxy set in the environment is not for it.
        let http = Client::builder().no_proxy().build()?;
        Ok(Self { http, base, token, home: home.to_owned() })
    }

    /// A request to `/v1/` and the given path segments, which are percent-encoded.
    pub fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("http URLs have a path").push("v1").extend(segments);
        self.http.request(method, url).bearer_auth(&self.token)
    }

    /// Sends a request and turns an error response into an error.
    ///
    /// # Errors
    /// What the node reports, or that it does not answer.
    pub async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                return anyhow::Error::new(NoNode { home: self.home.clone() });
            }
            anyhow::Error::new(error).context("the connection to the node broke")
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let reported = match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Reported { code: body.error.code, message: body.error.message },
            Err(_) => Reported {
                code: "http".into(),
                message: format!("the node answered {status}: {}", String::from_utf8_lossy(&body)),
            },
        };
        Err(reported.into())
    }

    /// Sends a request without a body and reads a JSON answer.
    ///
    /// # Errors
    /// As [`Self::send`], or when the answer is not what was expected.
    pub async fn json<T: DeserializeOwned>(&self, method: Method, segments: &[&str]) -> anyhow::Result<T> {
        Ok(self.send(self.request(method, segments)).await?.json().await?)
    }
}
