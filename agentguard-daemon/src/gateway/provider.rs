//! The providers' interfaces: which requests there are. What is not known here cannot be counted, and is refused.

use hyper::Method;
use serde::Deserialize;

/// What a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Chat Completions, Responses, Embeddings: `OpenAI` and what is compatible.
    OpenAi,
    /// Messages.
    Anthropic,
    /// `generateContent`.
    Gemini,
}

/// A request that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `chat/completions` and `completions`.
    Chat,
    /// `responses`.
    Responses,
    /// `embeddings`, `embedContent`, `batchEmbedContents`.
    Embeddings,
    /// `messages`.
    Messages,
    /// `generateContent`.
    Generate,
    /// `streamGenerateContent`.
    GenerateStream,
    /// Lists of models and counts of tokens, which cost nothing.
    Free,
}

impl Endpoint {
    /// Whether its answers take tokens.
    pub fn is_metered(self) -> bool {
        self != Self::Free
    }

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Generate | Self::GenerateStream => "generate",
            Self::Free => "free",
        }
    }
}

impl Api {
    /// The request behind a path (without the provider's name), and the model where the path names it.
    pub fn endpoint(self, method: &Method, path: &str) -> Option<(Endpoint, Option<String>)> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-_.:@".contains(&c);
        let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let is_plain =
            |it: &&str| !it.is_empty() && *it != "." && *it != ".." && it.bytes().all(plain);
        if segments.len() > 8 || !segments.iter().all(is_plain) {
            return None;
        }
        let is_post = method == Method::POST;
        match self {
            Self::OpenAi => openai(method == Method::GET, is_post, &segments),
            Self::Anthropic => match segments.as_slice() {
                ["v1", "messages"] if is_post => Some((Endpoint::Messages, None)),
                ["v1", "messages", "count_tokens"] if is_post => Some((Endpoint::Free, None)),
                ["v1", "models"] | ["v1", "models", _] if method == Method::GET => {
                    Some((Endpoint::Free, None))
                }
                _ => None,
            },
            Self::Gemini => match segments.as_slice() {
                ["v1" | "v1beta" | "v1alpha", "models", call] if is_post => {
                    let (model, call) = call.split_once(':')?;
                    let endpoint = match call {
                        "generateContent" => Endpoint::Generate,
                        "streamGenerateContent" => Endpoint::GenerateStream,
                        "embedContent" | "batchEmbedContents" => Endpoint::Embeddings,
                        "countTokens" => Endpoint::Free,
                        _ => return None,
                    };
                    Some((endpoint, Some(model.to_owned())))
                }
                ["v1" | "v1beta" | "v1alpha", "models"]
                | ["v1" | "v1beta" | "v1alpha", "models", _]
                    if method == Method::GET =>
                {
                    Some((Endpoint::Free, None))
                }
                _ => None,
            },
        }
    }

    /// The header that carries a key, and what stands before the key.
    pub fn key_header(self) -> (&'static str, &'static str) {
        match self {
            Self::OpenAi => ("authorization", "Bearer "),
            Self::Anthropic => ("x-api-key", ""),
            Self::Gemini => ("x-goog-api-key", ""),
        }
    }
}

/// At most four segments of a version and a base may come before.
fn openai(is_get: bool, is_post: bool, segments: &[&str]) -> Option<(Endpoint, Option<String>)> {
    let (endpoint, base) = match segments {
        [base @ .., "chat", "completions"] if is_post => (Endpoint::Chat, base),
        [base @ .., "completions"] if is_post => (Endpoint::Chat, base),
        [base @ .., "responses"] if is_post => (Endpoint::Responses, base),
        [base @ .., "embeddings"] if is_post => (Endpoint::Embeddings, base),
        [base @ .., "models"] if is_get => (Endpoint::Free, base),
        [base @ .., "models", _] if is_get => (Endpoint::Free, base),
        _ => return None,
    };
    // No other interface may hide before these words.
    let known = |it: &&str| {
        matches!(
            *it,
            "v1" | "v1beta"
                | "v2"
                | "v3"
                | "v4"
                | "api"
                | "openai"
                | "compat"
                | "compatible-mode"
                | "inference"
        )
    };
    (base.len() <= 4 && base.iter().all(known)).then_some((endpoint, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_let_through() {
        let post = |api: Api, path| api.endpoint(&Method::POST, path).map(|it| it.0);
        assert_eq!(
            post(Api::OpenAi, "/v1/chat/completions"),
            Some(Endpoint::Chat)
        );
        assert_eq!(
            post(Api::OpenAi, "/v1/responses"),
            Some(Endpoint::Responses)
        );
        assert_eq!(
            post(Api::Anthropic, "/v1/messages"),
            Some(Endpoint::Messages)
        );
        assert_eq!(
            Api::Gemini.endpoint(
                &Method::POST,
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent"
            ),
            Some((Endpoint::GenerateStream, Some("gemini-2.5-pro".into())))
        );
        for path in [
            "/v1/files",
            "/v1/batches",
            "/v1/fine_tuning/jobs",
            "/v1/images/generations",
            "/v1/audio/speech",
            "/v1/../v1/chat/completions",
            "/v1/%63hat/completions",
            "//chat/completions",
            "/v1/chat/completions/",
            "/v1/responses/resp_1/cancel",
            "/v1/threads/t/responses",
            "",
            "/",
            "v1/chat/completions",
            "/v1/messages/batches",
        ] {
            for api in [Api::OpenAi, Api::Anthropic, Api::Gemini] {
                assert_eq!(post(api, path), None, "{path}");
            }
        }
        assert_eq!(Api::OpenAi.endpoint(&Method::DELETE, "/v1/models/x"), None);
    }
}
