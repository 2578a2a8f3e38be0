//! The parameters of a request: of its body first, then of its query.

use axum::body::Body;
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use percent_encoding::percent_decode;
use serde_json::Value;

use super::answer::Refusal;
use super::form::{Form, broken};
use super::multipart::{self, Piece};
use super::place::{Labels, Values, unquoted};

/// The most bytes of a body that has parameters alone, and of all fields of an upload beside its file and its JSON.
pub(super) const BYTES_MAX: usize = 64 << 10;
/// What each field of a body counts beside its name and its value, so that empty ones are bounded as well.
pub(super) const FIELD_BYTES: usize = 64;

/// Names and values. Of several with one name the first counts.
type Pairs = Vec<(String, String)>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Parameters {
    body: Pairs,
    query: Pairs,
}

impl Parameters {
    /// Those of the query alone.
    pub(super) fn of_query(parts: &Parts) -> Self {
        Self {
            body: Pairs::new(),
            query: pairs(parts.uri.query().unwrap_or_default().as_bytes()),
        }
    }

    /// All of a request: of a multipart body (where it has a boundary), a form, or a JSON object. Anything else is no body
    /// with parameters, and is not read.
    ///
    /// # Errors
    /// The body is too long, malformed, or does not go on.
    pub(super) async fn read(parts: &Parts, body: Body) -> Result<Self, Refusal> {
        let mut parameters = Self::of_query(parts);
        let content_type = content_type(parts);
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if let Some(boundary) = multipart::boundary(content_type) {
            parameters.body = multipart_pairs(Form::new(body, &boundary)).await?;
        } else if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            parameters.body = pairs(&whole(body).await?);
        } else if kind.eq_ignore_ascii_case("application/json") {
            parameters.body = json_pairs(&whole(body).await?)?;
        }
        Ok(parameters)
    }

    /// One more of the body.
    pub(super) fn push(&mut self, name: String, value: String) {
        self.body.push((name, value));
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = |pairs: &'_ Pairs| pairs.iter().position(|(other, _)| other == name);
        let pair = match found(&self.body) {
            Some(place) => self.body.get(place),
            None => self.query.get(found(&self.query)?),
        };
        pair.map(|(_, value)| value.as_str())
    }

    /// The values that name a place.
    pub(super) fn values(&self, labels: Labels) -> Values {
        let of = |name| self.get(name).map(str::to_owned);
        Values {
            project: of("project"),
            source: of("source"),
            path: of(labels.path),
            name: of(labels.name),
        }
    }

    /// The same for scripts that put quotes around values.
    pub(super) fn unquoted_values(&self, labels: Labels) -> Values {
        let of = |name| Some(unquoted(self.get(name)?).to_owned());
        Values {
            project: of("project"),
            source: of("source"),
            path: of(labels.path),
            name: of(labels.name),
        }
    }
}

pub(super) fn content_type(parts: &Parts) -> &str {
    let value = parts.headers.get(CONTENT_TYPE);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn too_long() -> Refusal {
    Refusal::text(
        413,
        format!("413: parameters have at most {BYTES_MAX} bytes\n"),
    )
}

async fn whole(body: Body) -> Result<Vec<u8>, Refusal> {
    use futures_util::StreamExt;
    let mut stream = body.into_data_stream();
    let mut whole = Vec::new();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|_| broken())?;
        if whole.len() + bytes.len() > BYTES_MAX {
            return Err(too_long());
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole)
}

/// The pairs of a query, or of a form. What is no valid encoding is taken as it is.
fn pairs(text: &[u8]) -> Pairs {
    let decoded = |part: &[u8]| {
        let spaced: Vec<u8> = part
            .iter()
            .map(|byte| if *byte == b'+' { b' ' } else { *byte })
            .collect();
        percent_decode(&spaced).decode_utf8_lossy().into_owned()
    };
    let parts = text
        .split(|byte| *byte == b'&')
        .filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let mut sides = part.splitn(2, |byte| *byte == b'=');
            let name = sides.next().unwrap_or_default();
            (decoded(name), decoded(sides.next().unwrap_or_default()))
        })
        .collect()
}

fn json_pairs(json: &[u8]) -> Result<Pairs, Refusal> {
    if json.is_empty() {
        return Ok(Pairs::new());
    }
    let value = serde_json::from_slice(json);
    let Ok(Value::Object(members)) = value else {
        return Err(Refusal::bad("the body is no JSON object"));
    };
    let text = |value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let members = members.into_iter();
    Ok(members.map(|(name, value)| (name, text(value))).collect())
}

/// The fields of a multipart body that are no files.
async fn multipart_pairs(mut form: Form) -> Result<Pairs, Refusal> {
    let mut pairs = Pairs::new();
    let mut left = BYTES_MAX;
    loop {
        let head = match form.next().await? {
            Piece::Head(head) => head,
            Piece::Done => return Ok(pairs),
            Piece::Data(_) | Piece::End => continue,
        };
        if head.is_file {
            form.skip().await?;
            continue;
        }
        let value = form.data(left, too_long).await?;
        left = left
            .checked_sub(FIELD_BYTES + value.len() + head.name.len())
            .ok_or_else(too_long)?;
        pairs.push((head.name, String::from_utf8_lossy(&value).into_owned()));
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    async fn read(uri: &str, content_type: &str, body: &str) -> Result<Parameters, Refusal> {
        let request = Request::builder()
            .uri(uri)
            .header(CONTENT_TYPE, content_type);
        let (parts, body) = request
            .body(Body::from(body.to_owned()))
            .unwrap()
            .into_parts();
        Parameters::read(&parts, body).await
    }

    #[tokio::test]
    async fn the_body_counts_before_the_query() {
        let uri = "/x?a=1&b=%22two+2%22&c=%zz&b=3&d";
        for (content_type, body) in [
            ("application/x-www-form-urlencoded", "a=x%20y&e=5"),
            ("application/json; charset=utf-8", r#"{"a":"x y","e":5}"#),
            (
                "multipart/form-data; boundary=b",
                "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx y\r\n--b\r\n\
                 Content-Disposition: form-data; name=\"b\"; filename=\"f\"\r\n\r\nfile\r\n--b\r\n\
                 Content-Disposition: form-data; name=e\r\n\r\n5\r\n--b--\r\n",
            ),
        ] {
            let all = read(uri, content_type, body).await.unwrap();
            let got: Vec<_> = ["a", "b", "c", "d", "e", "f"]
                .map(|name| all.get(name))
                .into();
            let wanted = [
                Some("x y"),
                Some("\"two 2\""),
                Some("%zz"),
                Some(""),
                Some("5"),
                None,
            ];
            assert_eq!(got, wanted, "{content_type}");
        }
    }

    #[tokio::test]
    async fn a_content_type_without_a_body_does_no_harm() {
        for content_type in [
            "multipart/form-data",
            "text/plain",
            "application/json",
            "application/x-www-form-urlencoded",
        ] {
            let all = read("/x?a=1", content_type, "").await.unwrap();
            assert_eq!(all.get("a"), Some("1"));
        }
        read("/x", "application/json", "[1]").await.unwrap_err();
        read("/x", "multipart/form-data; boundary=b", "--b\r\n")
            .await
            .unwrap_err();
        let long = "x".repeat(BYTES_MAX + 1);
        read("/x", "application/x-www-form-urlencoded", &long)
            .await
            .unwrap_err();
    }
}
