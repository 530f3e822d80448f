//! The policy file as its users write it. Only its shape: meaning is given in `lower`.
//!
//! Every value that a diagnostic may speak of keeps its place ([`At`]). Unknown keys are errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use agentguard_common::verdict::Lock;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::diagnostic::Span;
use super::limits::schema::{BudgetRule, ModelsRule, ScheduleRule};
use super::recording::{Audit, AuditSetting};

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_saphyr::Spanned::<T>::deserialize(deserializer)?;
        Ok(Self {
            value: spanned.value,
            span: span_of(&spanned.referenced),
        })
    }
}

/// The bytes of a location.
pub fn span_of(location: &serde_saphyr::Location) -> Span {
    let span = location.span();
    Span {
        offset: span.byte_offset().unwrap_or_default() as usize,
        len: span.byte_len().unwrap_or_default() as usize,
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// One value, or a list of them.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<At<T>>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        enum Either<T> {
            One(T),
            Many(Vec<At<T>>),
        }
        struct EitherVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for EitherVisitor<T> {
            type Value = Either<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one text or a list of texts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(StrDeserializer::new(text)).map(Either::One)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Either::Many)
            }
        }

        struct Any<T>(Either<T>);
        impl<'de, T: Deserialize<'de>> Deserialize<'de> for Any<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer
                    .deserialize_any(EitherVisitor(PhantomData))
                    .map(Any)
            }
        }

        let At {
            value: Any(either),
            span,
        } = At::<Any<T>>::deserialize(deserializer)?;
        Ok(Self(match either {
            Either::One(value) => vec![At { value, span }],
            Either::Many(values) => values,
        }))
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

/// A rule: a pattern alone, or a mapping that says more.
#[derive(Clone, Debug)]
pub enum Item<R> {
    /// The short form.
    Pattern(String),
    /// The long form.
    Rule(Box<R>),
}

impl<'de, R: Deserialize<'de>> Deserialize<'de> for Item<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor<R>(PhantomData<R>);

        impl<'de, R: Deserialize<'de>> Visitor<'de> for ItemVisitor<R> {
            type Value = Item<R>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a pattern (text) or a rule (mapping)")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Item::Pattern(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                R::deserialize(MapAccessDeserializer::new(map))
                    .map(|rule| Item::Rule(Box::new(rule)))
            }
        }
        deserializer.deserialize_any(ItemVisitor(PhantomData))
    }
}

impl<R: JsonSchema> JsonSchema for Item<R> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("ItemOf{}", R::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rule = generator.subschema_for::<R>();
        json_schema!({ "anyOf": [{ "type": "string", "minLength": 1 }, rule] })
    }
}

/// A list of rules.
pub type Items<R> = Option<Vec<At<Item<R>>>>;

/// An agent's policy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "AgentGuard policy")]
pub struct Document {
    /// Version of the format: 1.
    #[schemars(required, range(min = 1, max = 1))]
    pub version: Option<At<u32>>,
    /// Name of the policy; that of the file if absent.
    pub name: Option<At<String>>,
    /// What the policy is for.
    pub description: Option<String>,
    /// Policies whose rules apply as well: names, or paths relative to this file.
    pub extends: Option<Vec<At<String>>>,
    /// Variables for patterns: `${name}`. Values are plain text, never patterns.
    pub vars: Option<BTreeMap<String, At<String>>>,
    /// `enforce` (default), or `shadow`: record what would be denied, and let it go ahead.
    pub mode: Option<At<Mode>>,
    /// What is recorded of what is permitted, and what becomes of repeats.
    pub audit: Option<At<AuditSetting>>,
    /// Rules for opening files.
    pub files: Option<Files>,
    /// Rules for running programs.
    pub exec: Option<Exec>,
    /// Rules for connecting to addresses.
    pub network: Option<Network>,
    /// Examples with the verdict that they must have; `policy check` tries them.
    pub tests: Option<Vec<At<Example>>>,
    /// Switches for what changes the system or reaches outside of the agent; all `deny` unless written, but
    /// `anonymous_code`.
    #[serde(default)]
    #[schemars(schema_with = "kernel_schema")]
    pub kernel: Option<BTreeMap<String, At<Switch>>>,
    /// How much: budgets of calls, tokens, money and time.
    pub budgets: Option<Vec<At<BudgetRule>>>,
    /// When the agent may work.
    pub schedule: Option<At<ScheduleRule>>,
    /// Which models may be called, through the gateway.
    pub models: Option<At<ModelsRule>>,
}

/// The switches by name.
fn kernel_schema(generator: &mut SchemaGenerator) -> Schema {
    let switch = generator.subschema_for::<Switch>();
    let switches: serde_json::Map<String, serde_json::Value> = Lock::ALL
        .iter()
        .map(|lock| (lock.name().to_owned(), switch.clone().to_value()))
        .collect();
    json_schema!({
        "type": ["object", "null"],
        "description": "Switches for what changes the system or reaches outside of the agent.",
        "properties": switches,
        "additionalProperties": false,
    })
}

/// Whether denials are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Denied actions fail.
    Enforce,
    /// Denied actions go ahead and are recorded as `would-deny`.
    Shadow,
}

/// A verdict that a policy may give by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The action goes ahead.
    Allow,
    /// The action is denied now; an operator may grant it.
    Ask,
    /// The action is denied.
    Deny,
}

/// Allow or deny, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Permitted.
    Allow,
    /// Denied.
    Deny,
}

/// Rules for opening files. Directories are files: listing one is reading it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Verdict for reading and for writing where nothing matches and no narrower default is written.
    pub default: Option<At<Choice>>,
    /// Opening for reading.
    pub read: Option<FileRules>,
    /// Opening for writing: create, change, truncate.
    pub write: Option<FileRules>,
    /// Rules for both.
    pub read_write: Option<FileRules>,
}

/// Rules for one access. The strictest rule that matches wins, in whatever order they are written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRules {
    /// Verdict where no rule matches; `deny` if it is written nowhere.
    pub default: Option<At<Choice>>,
    /// What is permitted.
    pub allow: Items<PathRule>,
    /// What needs an operator; denied in this version.
    pub ask: Items<PathRule>,
    /// What is denied, whatever else permits it.
    pub deny: Items<PathRule>,
}

/// A rule about paths.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRule {
    /// One or more globs: `/usr/**`, `**/.env`, `~/.ssh/**`, `${workspace}/*.rs`.
    pub path: OneOrMany<String>,
    /// Name of the rule in records; must be unique.
    pub id: Option<At<String>>,
    /// Whether what it permits is recorded, whatever the level of the policy.
    pub audit: Option<At<Audit>>,
    /// Why; people and agents read it.
    pub reason: Option<String>,
    /// Globs that this rule (and no other) does not speak of.
    pub except: Option<OneOrMany<String>>,
    /// Examples that this rule must and must not match.
    pub tests: Option<RuleTests>,
}

/// Rules for running programs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Verdict where no rule matches; `deny` if it is written nowhere.
    pub default: Option<At<Choice>>,
    /// What is permitted.
    pub allow: Items<ExecRule>,
    /// What needs an operator; denied in this version.
    pub ask: Items<ExecRule>,
    /// What is denied, whatever else permits it.
    pub deny: Items<ExecRule>,
}

/// A rule about programs: by `path`, or by `command` (program and arguments).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRule {
    /// Globs over the resolved path of the program; a bare name means `**/name`.
    pub path: Option<OneOrMany<String>>,
    /// A program and a glob for each argument: `git push ** --force **`. `**` alone is any number of arguments.
    pub command: Option<OneOrMany<String>>,
    /// With `command`: what `argv[0]` must be, for programs that are many in one (`busybox`, `git-push`).
    pub argv0: Option<OneOrMany<String>>,
    /// Name of the rule in records; must be unique.
    pub id: Option<At<String>>,
    /// Why; people and agents read it.
    pub reason: Option<String>,
    /// Patterns of the same kind that this rule (and no other) does not speak of.
    pub except: Option<OneOrMany<String>>,
    /// Examples that this rule must and must not match.
    pub tests: Option<RuleTests>,
}

/// Rules for connecting and sending to socket addresses.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Verdict where no rule matches; `deny` if it is written nowhere.
    pub default: Option<At<Choice>>,
    /// Which Unix-domain sockets may be connected and sent to: `allow`, `deny`, or rules with a default of their
    /// own; `deny` if it is written nowhere.
    pub unix: Option<At<UnixSetting>>,
    /// Where others may be let in; the default is that of `network` if none is written here.
    pub listen: Option<ListenRules>,
    /// What is permitted.
    pub allow: Items<NetworkRule>,
    /// What needs an operator; denied in this version.
    pub ask: Items<NetworkRule>,
    /// What is denied, whatever else permits it.
    pub deny: Items<NetworkRule>,
}

/// Unix-domain sockets: all or none, or rules.
#[derive(Debug)]
pub enum UnixSetting {
    /// All or none.
    Switch(Switch),
    /// By name: globs over their paths, and `@…` for abstract names.
    Rules(Box<FileRules>),
}

impl<'de> Deserialize<'de> for UnixSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SettingVisitor;
        impl<'de> Visitor<'de> for SettingVisitor {
            type Value = UnixSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`allow`, `deny`, or a mapping with `default`, `allow`, `ask` and `deny`",
                )
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<UnixSetting, E> {
                Switch::deserialize(StrDeserializer::new(text)).map(UnixSetting::Switch)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<UnixSetting, A::Error> {
                FileRules::deserialize(MapAccessDeserializer::new(map))
                    .map(|rules| UnixSetting::Rules(Box::new(rules)))
            }
        }
        deserializer.deserialize_any(SettingVisitor)
    }
}

impl JsonSchema for UnixSetting {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "UnixSetting".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let switch = generator.subschema_for::<Switch>();
        let rules = generator.subschema_for::<FileRules>();
        json_schema!({ "anyOf": [switch, rules] })
    }
}

/// Rules for listening: addresses and ports of the host, and abstract names of Unix-domain sockets (`@name`).
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenRules {
    /// Verdict where no rule matches; that of `network` if none is written here.
    pub default: Option<At<Choice>>,
    /// What is permitted.
    pub allow: Items<NetworkRule>,
    /// What needs an operator; denied in this version.
    pub ask: Items<NetworkRule>,
    /// What is denied, whatever else permits it.
    pub deny: Items<NetworkRule>,
}

/// A rule about destinations. The short form is `ADDRESS[:PORTS][/PROTOCOL]` or `NAME[:PORTS][/PROTOCOL]`:
/// `10.0.0.0/8:443/tcp`, `[::1]:80`, `any:53/udp`, `*.example.com:443`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRule {
    /// Ranges: `10.0.0.0/8`, `fc00::/7`.
    pub cidr: Option<OneOrMany<String>>,
    /// Single addresses or ranges, or `any`.
    pub address: Option<OneOrMany<String>>,
    /// Names of hosts: `api.example.com`, `*.example.com` (one label), `**.example.com` (any number of labels).
    pub name: Option<OneOrMany<String>>,
    /// In `listen` only: abstract names of Unix-domain sockets, `@name`.
    pub unix: Option<OneOrMany<String>>,
    /// Ports: `443`, `8000-8999`, or a list.
    pub port: Option<OneOrMany<Port>>,
    /// Protocol: `any` if absent.
    pub protocol: Option<At<ProtocolName>>,
    /// Name of the rule in records; must be unique.
    pub id: Option<At<String>>,
    /// Whether what it permits is recorded, whatever the level of the policy.
    pub audit: Option<At<Audit>>,
    /// Why; people and agents read it.
    pub reason: Option<String>,
    /// Destinations, in the short form, that this rule (and no other) does not speak of.
    pub except: Option<OneOrMany<String>>,
    /// Examples that this rule must and must not match: `10.1.2.3:443/tcp`.
    pub tests: Option<RuleTests>,
}

/// A port or a range of ports, kept as text.
#[derive(Clone, Debug)]
pub struct Port(pub String);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (`443`) or a range of ports (`8000-8999`)")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Port, E> {
                Ok(Port(text.to_owned()))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Port, E> {
                Ok(Port(number.to_string()))
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Port, E> {
                Ok(Port(number.to_string()))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

impl JsonSchema for Port {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 65535 },
            { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?$" },
        ] })
    }
}

/// The name of a protocol, kept as text so that the diagnostic can say what is known.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct ProtocolName(pub String);

impl JsonSchema for ProtocolName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Protocol".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "enum": ["tcp", "udp", "icmp", "any"] })
    }
}

/// Examples for one rule.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleTests {
    /// What the rule must match.
    #[serde(rename = "match")]
    pub matching: Option<OneOrMany<String>>,
    /// What the rule must not match.
    pub not_match: Option<OneOrMany<String>>,
}

/// An action and the verdict that it must have: exactly one of `read`, `write`, `exec`, `connect`, `listen`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Open this path for reading.
    pub read: Option<OneOrMany<String>>,
    /// Open this path for writing.
    pub write: Option<OneOrMany<String>>,
    /// Run this command; a bare program name stands for `/usr/bin/NAME`.
    pub exec: Option<OneOrMany<String>>,
    /// Connect to `ADDRESS:PORT/PROTOCOL` or `NAME:PORT/PROTOCOL`, to `unix:/PATH` or `unix:@NAME`, or to `unix`: a socket that no rule knows.
    pub connect: Option<OneOrMany<String>>,
    /// Listen at `ADDRESS:PORT/PROTOCOL`, or take the abstract name `unix:@NAME`.
    pub listen: Option<OneOrMany<String>>,
    /// The verdict.
    pub expect: At<Choice>,
    /// The id of the rule that must win.
    pub rule: Option<At<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_the_two_forms_of_a_rule() {
        let text = "version: 1\nfiles:\n  read:\n    allow:\n      - /usr/**\n      - path: [/a, /b]\n        id: ab\n";
        let document: Document = serde_saphyr::from_str(text).expect("a valid document");
        let items = document
            .files
            .and_then(|f| f.read)
            .and_then(|r| r.allow)
            .expect("rules");
        assert_eq!(&text[items[0].span.offset..][..4], "/usr");
        let Item::Rule(rule) = &items[1].value else {
            panic!("the long form")
        };
        assert_eq!(&text[rule.path.0[1].span.offset..][..2], "/b");
        assert_eq!(
            &text[rule.id.as_ref().expect("an id").span.offset..][..2],
            "ab"
        );
    }
}
