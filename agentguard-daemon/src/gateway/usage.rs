//! What a call took, as the provider itself says.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::provider::Endpoint;

/// Tokens of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read, cached ones and those written to the cache included.
    pub input: u64,
    /// Written, hidden thoughts included.
    pub output: u64,
    /// Read from the cache.
    pub cached: u64,
    /// Written to the cache for minutes.
    pub written: u64,
    /// Written to the cache for an hour.
    pub written_long: u64,
}

/// Collects usage from the parts of an answer.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    usage: Usage,
    /// Whether input is known.
    has_input: bool,
    /// Whether the last word on it was said.
    is_final: bool,
}

fn number(value: &Value, key: &str) -> Option<u64> {
    value.get(key)?.as_u64()
}

fn deep(value: &Value, outer: &str, key: &str) -> u64 {
    value.get(outer).and_then(|it| number(it, key)).unwrap_or(0)
}

impl Tracker {
    /// The usage, if the provider said it to the end.
    pub fn usage(&self) -> Option<Usage> {
        (self.is_final && self.has_input).then_some(self.usage)
    }

    /// The tokens read, if that is known already.
    pub fn input(&self) -> Option<Usage> {
        self.has_input.then_some(self.usage)
    }

    /// Takes in one event of a stream, or a whole answer.
    pub fn take(&mut self, endpoint: Endpoint, value: &Value) {
        match endpoint {
            Endpoint::Chat => self.openai(value.get("usage"), "prompt_tokens", "completion_tokens"),
            Endpoint::Responses => {
                // A stream has it in the answer that its last event carries.
                let inner = value.get("response").unwrap_or(value);
                self.openai(inner.get("usage"), "input_tokens", "output_tokens");
            }
            Endpoint::Messages => self.anthropic(value),
            Endpoint::Embeddings => {
                self.openai(value.get("usage"), "prompt_tokens", "completion_tokens");
                self.gemini(value.get("usageMetadata"));
            }
            Endpoint::Generate | Endpoint::GenerateStream => match value {
                Value::Array(parts) => {
                    for part in parts {
                        self.gemini(part.get("usageMetadata"));
                    }
                }
                value => self.gemini(value.get("usageMetadata")),
            },
            Endpoint::Free => {}
        }
    }

    fn openai(&mut self, usage: Option<&Value>, input: &str, output: &str) {
        let Some(usage) = usage.filter(|it| it.is_object()) else {
            return;
        };
        let Some(read) = number(usage, input) else {
            return;
        };
        let cached = deep(usage, "prompt_tokens_details", "cached_tokens").max(deep(
            usage,
            "input_tokens_details",
            "cached_tokens",
        ));
        let written = number(usage, output).unwrap_or(0);
        // What neither of the two names has must have been written.
        let total = number(usage, "total_tokens").unwrap_or(0);
        self.usage = Usage {
            input: read,
            output: written.max(total.saturating_sub(read)),
            cached: cached.min(read),
            ..Usage::default()
        };
        (self.has_input, self.is_final) = (true, true);
    }

    fn anthropic(&mut self, value: &Value) {
        let begins = value.get("type").and_then(Value::as_str) == Some("message_start");
        let usage = if begins {
            value.get("message").and_then(|it| it.get("usage"))
        } else {
            value.get("usage")
        };
        let Some(usage) = usage.filter(|it| it.is_object()) else {
            return;
        };
        if let Some(plain) = number(usage, "input_tokens") {
            let cached = number(usage, "cache_read_input_tokens").unwrap_or(self.usage.cached);
            let before = self.usage.written.saturating_add(self.usage.written_long);
            let all = number(usage, "cache_creation_input_tokens").unwrap_or(before);
            let long = deep(usage, "cache_creation", "ephemeral_1h_input_tokens")
                .max(self.usage.written_long);
            self.usage.cached = cached;
            self.usage.written_long = long.min(all);
            self.usage.written = all.saturating_sub(long);
            self.usage.input = plain.saturating_add(cached).saturating_add(all);
            self.has_input = true;
        }
        if let Some(output) = number(usage, "output_tokens") {
            self.usage.output = self.usage.output.max(output);
            self.is_final |= !begins;
        }
    }

    fn gemini(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage.filter(|it| it.is_object()) else {
            return;
        };
        let Some(prompt) = number(usage, "promptTokenCount") else {
            return;
        };
        let or = |key| number(usage, key).unwrap_or(0);
        let input = prompt.saturating_add(or("toolUsePromptTokenCount"));
        let written = or("candidatesTokenCount").saturating_add(or("thoughtsTokenCount"));
        self.usage = Usage {
            input,
            output: written.max(or("totalTokenCount").saturating_sub(input)),
            cached: or("cachedContentTokenCount").min(input),
            ..Usage::default()
        };
        (self.has_input, self.is_final) = (true, true);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn usage(endpoint: Endpoint, parts: &[Value]) -> Option<Usage> {
        let mut tracker = Tracker::default();
        for part in parts {
            tracker.take(endpoint, part);
        }
        tracker.usage()
    }

    #[test]
    fn each_provider_says_it_in_its_own_way() {
        let chat = json!({"usage": {"prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27, "prompt_tokens_details": {"cached_tokens": 12}}});
        let expected = Usage {
            input: 20,
            output: 7,
            cached: 12,
            ..Usage::default()
        };
        assert_eq!(
            usage(Endpoint::Chat, &[json!({"usage": null}), chat]),
            Some(expected)
        );
        assert_eq!(usage(Endpoint::Chat, &[json!({"choices": []})]), None);
        let responses = json!({"type": "response.completed", "response": {"usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27, "input_tokens_details": {"cached_tokens": 12}}}});
        assert_eq!(usage(Endpoint::Responses, &[responses]), Some(expected));
        let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 12, "cache_creation_input_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 1, "ephemeral_5m_input_tokens": 2}, "output_tokens": 1}}});
        let delta = json!({"type": "message_delta", "usage": {"output_tokens": 7}});
        let expected = Usage {
            input: 20,
            output: 7,
            cached: 12,
            written: 2,
            written_long: 1,
        };
        assert_eq!(
            usage(Endpoint::Messages, &[start.clone(), delta]),
            Some(expected)
        );
        assert_eq!(usage(Endpoint::Messages, &[start]), None);
        let parts = json!([
            {"usageMetadata": {"promptTokenCount": 20, "totalTokenCount": 20}},
            {"usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 4, "thoughtsTokenCount": 3, "cachedContentTokenCount": 12, "totalTokenCount": 27}}
        ]);
        let expected = Usage {
            input: 20,
            output: 7,
            cached: 12,
            ..Usage::default()
        };
        assert_eq!(usage(Endpoint::GenerateStream, &[parts]), Some(expected));
    }

    #[test]
    fn nonsense_is_no_usage() {
        for value in [
            json!(null),
            json!({"usage": 5}),
            json!({"usage": {"prompt_tokens": -1}}),
            json!({"usage": {"prompt_tokens": "5"}}),
            json!([]),
        ] {
            for endpoint in [
                Endpoint::Chat,
                Endpoint::Messages,
                Endpoint::Responses,
                Endpoint::Generate,
            ] {
                assert_eq!(
                    usage(endpoint, std::slice::from_ref(&value)),
                    None,
                    "{value}"
                );
            }
        }
    }
}
