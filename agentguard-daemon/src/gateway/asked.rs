//! What a request asks for, and the most that it can take. The request itself is not changed.
//!
//! A token is at least one byte, so a request of so many bytes reads no more tokens; what it only refers to is
//! reserved by the policy's figure. What two readers could understand differently is refused.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::provider::Endpoint;
use crate::policy::limits::Models;

/// Tokens that providers add on their own.
const EXTRA: u64 = 1024;
/// Text of this length is looked at as possible contents of a file.
const LONG: usize = 1024;

/// A request as far as it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The model.
    pub model: String,
    /// Whether the answer comes in parts.
    pub stream: bool,
    /// The most tokens that it reads.
    pub input: u64,
    /// The most tokens that it writes.
    pub output: u64,
    /// About so many tokens it reads, where the provider does not say.
    pub guess: u64,
}

/// The top level of a request: each key once.
struct Top(Map<String, Value>);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopVisitor;
        impl<'de> Visitor<'de> for TopVisitor {
            type Value = Top;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Top, A::Error> {
                let mut map = Map::new();
                let mut seen = BTreeSet::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    // Some servers do not mind the case of a key.
                    if !seen.insert(key.to_ascii_lowercase()) {
                        return Err(serde::de::Error::custom("a key is written twice"));
                    }
                    map.insert(key, value);
                }
                Ok(Top(map))
            }
        }
        deserializer.deserialize_map(TopVisitor)
    }
}

/// Keys that are read here, and must be written just so.
const READ: [&str; 8] = [
    "model",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "n",
    "best_of",
    "background",
];

/// Reads a request.
pub fn read(
    endpoint: Endpoint,
    model: Option<String>,
    body: &[u8],
    models: &Models,
) -> Result<Asked, String> {
    if !endpoint.is_metered() && body.is_empty() {
        return Ok(Asked {
            model: model.unwrap_or_default(),
            stream: false,
            input: 0,
            output: 0,
            guess: 0,
        });
    }
    let Top(top) = serde_json::from_slice(body).map_err(|error| {
        format!("the request is not a JSON object that can be counted: {error}")
    })?;
    for key in top.keys() {
        if !READ.contains(&key.as_str()) && READ.contains(&key.to_ascii_lowercase().as_str()) {
            return Err(format!(
                "write `{}` in small letters",
                key.to_ascii_lowercase()
            ));
        }
    }
    if top
        .get("background")
        .is_some_and(|it| *it != Value::Bool(false) && !it.is_null())
    {
        return Err("`background` cannot be counted: send the request without it".to_owned());
    }
    let is_gemini = model.is_some();
    let model = match (model, top.get("model")) {
        (Some(model), _) => model,
        (None, Some(Value::String(model))) => model.clone(),
        (None, _) => return Err("`model` is missing".to_owned()),
    };
    if model.len() > 200 || model.chars().any(char::is_control) {
        return Err("`model` is no name of a model".to_owned());
    }
    let stream = match top.get("stream") {
        Some(Value::Bool(stream)) => *stream,
        None | Some(Value::Null) => false,
        Some(_) => return Err("`stream` must be true or false".to_owned()),
    };
    let mut outside = Outside::default();
    outside.object(&top);
    let things = (outside.things as u64).saturating_mul(models.outside_tokens);
    let media = (outside.media as u64).saturating_mul(models.outside_tokens);
    let plain = (body.len() - outside.media_bytes.min(body.len())) as u64;
    // Contents of files are encoded; even the densest of them are more bytes than tokens.
    let dense = (outside.media_bytes as u64 / 64).max(media);
    let (input, output, guess) = if endpoint.is_metered() {
        let beside = things.saturating_add(dense);
        (
            plain.saturating_add(beside).saturating_add(EXTRA),
            output(endpoint, &top, is_gemini, models)?,
            plain.div_ceil(3).saturating_add(beside),
        )
    } else {
        (0, 0, 0)
    };
    Ok(Asked {
        model,
        stream: stream || endpoint == Endpoint::GenerateStream,
        input,
        output,
        guess,
    })
}

/// The most that may be written.
fn output(
    endpoint: Endpoint,
    top: &Map<String, Value>,
    is_gemini: bool,
    models: &Models,
) -> Result<u64, String> {
    if endpoint == Endpoint::Embeddings {
        return Ok(0);
    }
    let number = |map: &Map<String, Value>, key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or_else(|| format!("`{key}` must be a whole number")),
    };
    let mut limit = None;
    let mut times = 1;
    let mut most = |map: &Map<String, Value>, keys: &[&str], counts: &[&str]| {
        for key in keys {
            limit = limit.max(number(map, key)?);
        }
        for key in counts {
            times = times.max(number(map, key)?.unwrap_or(1));
        }
        Ok::<(), String>(())
    };
    if is_gemini {
        for key in ["generationConfig", "generation_config"] {
            if let Some(Value::Object(config)) = top.get(key) {
                most(
                    config,
                    &["maxOutputTokens", "max_output_tokens"],
                    &["candidateCount", "candidate_count"],
                )?;
            }
        }
    } else {
        most(
            top,
            &["max_tokens", "max_completion_tokens", "max_output_tokens"],
            &["n", "best_of"],
        )?;
    }
    // Several prompts in one request each have their own answer.
    if let Some(Value::Array(prompts)) = top.get("prompt") {
        let texts = prompts.iter().filter(|it| !it.is_number()).count();
        times = times.saturating_mul(texts.max(1) as u64);
    }
    Ok(limit.unwrap_or(models.output_tokens).saturating_mul(times))
}

/// What a request holds or names besides text.
#[derive(Debug, Default)]
struct Outside {
    /// Things elsewhere.
    things: usize,
    /// Encoded files.
    media: usize,
    media_bytes: usize,
}

impl Outside {
    fn look(&mut self, value: &Value) {
        match value {
            Value::String(text) if text.len() > LONG && text.starts_with("data:") => {
                self.file(text);
            }
            Value::String(text)
                if text.starts_with("http://")
                    || text.starts_with("https://")
                    || text.starts_with("gs://") =>
            {
                self.things += 1;
            }
            Value::Array(values) => {
                for value in values {
                    self.look(value);
                }
            }
            Value::Object(map) => self.object(map),
            _ => {}
        }
    }

    fn object(&mut self, map: &Map<String, Value>) {
        let is_file = ["media_type", "mime_type", "mimeType", "format"]
            .iter()
            .any(|key| map.contains_key(*key));
        for (key, value) in map {
            match (key.as_str(), value) {
                ("data", Value::String(text)) if is_file && text.len() > LONG => self.file(text),
                (
                    "file_id"
                    | "previous_response_id"
                    | "conversation"
                    | "cachedContent"
                    | "cached_content"
                    | "vector_store_ids"
                    | "container",
                    value,
                ) if !value.is_null() => self.things += 1,
                ("type", Value::String(kind)) if is_tool(kind) => self.things += 1,
                (
                    "googleSearch" | "google_search" | "urlContext" | "url_context"
                    | "codeExecution" | "code_execution",
                    _,
                ) => {
                    self.things += 1;
                }
                (_, value) => self.look(value),
            }
        }
    }

    fn file(&mut self, text: &str) {
        self.media += 1;
        self.media_bytes += text.len();
    }
}

/// Tools that run at the provider, and read more on their own.
fn is_tool(kind: &str) -> bool {
    [
        "web_search",
        "web_fetch",
        "file_search",
        "code_interpreter",
        "code_execution",
        "computer",
        "mcp",
        "image_generation",
    ]
    .iter()
    .any(|tool| kind.starts_with(tool))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::limits::UnknownPrice;

    fn models() -> Models {
        Models {
            providers: vec!["x".into()],
            output_tokens: 500,
            outside_tokens: 1000,
            unknown_price: UnknownPrice::Deny,
        }
    }

    fn asked(endpoint: Endpoint, body: &str) -> Result<Asked, String> {
        read(endpoint, None, body.as_bytes(), &models())
    }

    #[test]
    fn the_most_that_a_request_can_take() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":100,"n":3,"stream":true}"#;
        let it = asked(Endpoint::Chat, body).unwrap();
        assert!(it.stream && it.model == "m");
        assert_eq!((it.input, it.output), (body.len() as u64 + EXTRA, 300));
        assert_eq!(
            asked(Endpoint::Chat, r#"{"model":"m"}"#).unwrap().output,
            500
        );
        let picture = format!(
            r#"{{"model":"m","x":{{"type":"image","source":{{"media_type":"image/png","data":"{}"}}}}}}"#,
            "A".repeat(20_000)
        );
        let it = asked(Endpoint::Messages, &picture).unwrap();
        assert!(it.input < 3000 + EXTRA && it.input > 1000 + EXTRA, "{it:?}");
        // The same text where it is text.
        let text = format!(r#"{{"model":"m","x":{{"data":"{}"}}}}"#, "A".repeat(20_000));
        assert!(asked(Endpoint::Messages, &text).unwrap().input > 20_000);
        let elsewhere = r#"{"model":"m","previous_response_id":"r","input":[{"type":"input_image","image_url":"https://x/y.png"}],"tools":[{"type":"web_search_preview"}]}"#;
        assert!(asked(Endpoint::Responses, elsewhere).unwrap().input > 3000 + EXTRA);
        let gemini =
            r#"{"contents":[],"generation_config":{"max_output_tokens":70,"candidateCount":2}}"#;
        let it = read(
            Endpoint::GenerateStream,
            Some("g".into()),
            gemini.as_bytes(),
            &models(),
        )
        .unwrap();
        assert_eq!((it.output, it.stream), (140, true));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for body in [
            r#"{"model":"cheap","model":"dear"}"#,
            r#"{"model":"cheap","Model":"dear"}"#,
            r#"{"MODEL":"dear"}"#,
            r#"{"model":"m","max_tokens":-1}"#,
            r#"{"model":"m","max_tokens":1.5}"#,
            r#"{"model":"m","stream":"true"}"#,
            r#"{"model":"m","background":true}"#,
            r#"{"model":["m"]}"#,
            "{}",
            "[]",
            r#"{"model":"m"} {"#,
            "",
        ] {
            assert!(asked(Endpoint::Chat, body).is_err(), "{body}");
        }
    }
}
