//! What of that which is permitted is recorded: the level of the policy, and levels of rules. Refusals and programs always
//! are.

use std::borrow::Cow;
use std::fmt;

use agentguard_common::table::{flags, level, network_label, path_label};
use agentguard_common::verdict::access;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::Policy;
use super::rule::{Action, Matcher, Rule};

/// What is recorded of what is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Audit {
    /// Programs alone.
    Denied,
    /// All but opens and changes of names.
    Decisions,
    /// Everything (default).
    All,
}

/// What becomes of acts that a thread repeats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RepeatedActs {
    /// They are counted, and a record says how many there were.
    Fold,
    /// Each has a record (default).
    #[default]
    Each,
}

impl Audit {
    /// Its name in policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Decisions => "decisions",
            Self::All => "all",
        }
    }

    /// The flags of a table for a policy with this level.
    pub fn flags(self) -> u32 {
        match self {
            Self::Denied => flags::QUIET | flags::QUIET_OPENS,
            Self::Decisions => flags::QUIET_OPENS,
            Self::All => 0,
        }
    }

    /// What a rule with this level says of what it permits: opens and changes of names, or sockets.
    fn said(self, opens: bool) -> u32 {
        let least = if opens { Self::All } else { Self::Decisions };
        if self >= least {
            level::LOUD
        } else {
            level::QUIET
        }
    }

    /// What a rule about these accesses to paths says, in the bits of a label.
    pub fn of_path(self, accesses: u8) -> u32 {
        [
            (access::READ, path_label::READ, true),
            (access::WRITE, path_label::WRITE, true),
            (access::CONNECT, path_label::CONNECT, false),
            (access::LISTEN, path_label::LISTEN, false),
        ]
        .into_iter()
        .filter(|(bit, ..)| accesses & bit != 0)
        .fold(0, |all, (_, shift, opens)| {
            all | self.said(opens) << (shift + level::ABOVE)
        })
    }

    /// What a rule about destinations says, in the bits of a label.
    pub fn of_destination(self, listen: bool) -> u32 {
        let shift = if listen {
            network_label::LISTEN
        } else {
            network_label::CONNECT
        };
        self.said(false) << (shift + level::ABOVE)
    }

    /// What a rule about names of hosts says, in the lowest bits.
    pub fn of_name(self) -> u16 {
        self.said(false) as u16
    }
}

/// `audit:` of a policy: a level, or a level and what becomes of repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditSetting {
    /// The level, if it is written.
    pub level: Option<Audit>,
    /// What becomes of repeats, if it is written.
    pub repeats: Option<RepeatedActs>,
}

/// The same as a mapping.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuditMapping {
    /// What is recorded of what is permitted.
    level: Option<Audit>,
    /// What becomes of acts that a thread repeats within a second, exactly as before: `fold` counts them.
    repeats: Option<RepeatedActs>,
}

impl<'de> Deserialize<'de> for AuditSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SettingVisitor;
        impl<'de> Visitor<'de> for SettingVisitor {
            type Value = AuditSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`all`, `decisions`, `denied`, or a mapping with `level` and `repeats`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<AuditSetting, E> {
                let level = Audit::deserialize(StrDeserializer::new(text))?;
                Ok(AuditSetting {
                    level: Some(level),
                    repeats: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AuditSetting, A::Error> {
                let written = AuditMapping::deserialize(MapAccessDeserializer::new(map))?;
                Ok(AuditSetting {
                    level: written.level,
                    repeats: written.repeats,
                })
            }
        }
        deserializer.deserialize_any(SettingVisitor)
    }
}

impl JsonSchema for AuditSetting {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AuditSetting".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let level = generator.subschema_for::<Audit>();
        let mapping = generator.subschema_for::<AuditMapping>();
        json_schema!({ "anyOf": [level, mapping] })
    }
}

/// Whether an action is recorded if it is permitted, and by whose word.
#[derive(Clone, Copy, Debug)]
pub struct Recording<'a> {
    /// Whether it has a record.
    pub is_recorded: bool,
    /// The rule whose level decides; the policy's does where there is none.
    pub rule: Option<&'a Rule>,
}

impl Policy {
    /// Whether an action is recorded if it is permitted.
    pub fn is_recorded(&self, action: &Action<'_>) -> bool {
        self.recording(action).is_recorded
    }

    /// The same, with who says so. Of several rules that match, whoever wants a record wins; where none says anything, the
    /// policy's level decides.
    pub fn recording(&self, action: &Action<'_>) -> Recording<'_> {
        match *action {
            Action::Path { path, access } => {
                let both = access::READ | access::WRITE;
                let wanted = if access & both == 0 {
                    both
                } else {
                    access & both
                };
                let (first, rest) = match wanted {
                    access::READ | access::WRITE => (wanted, None),
                    _ => (access::READ, Some(access::WRITE)),
                };
                let of = |access| self.said(&Action::Path { path, access }, true);
                let said = of(first);
                match rest {
                    Some(access) if !said.is_recorded => of(access),
                    _ => said,
                }
            }
            Action::Exec { .. } => Recording {
                is_recorded: true,
                rule: None,
            },
            Action::Kernel { .. } => Recording {
                is_recorded: self.audit() > Audit::Denied,
                rule: None,
            },
            Action::Network { .. }
            | Action::Name { .. }
            | Action::Listen { .. }
            | Action::Unix { .. } => self.said(action, false),
        }
    }

    fn said(&self, action: &Action<'_>, opens: bool) -> Recording<'_> {
        let is_loud = |audit: Audit| audit.said(opens) == level::LOUD;
        let mut said: Option<(&Rule, bool)> = None;
        for rule in self.matching_rules(action) {
            let Some(loud) = rule.audit.map(is_loud) else {
                continue;
            };
            if said.is_none_or(|(_, before)| loud && !before) {
                said = Some((rule, loud));
            }
        }
        Recording {
            is_recorded: said.map_or_else(|| is_loud(self.audit()), |(_, loud)| loud),
            rule: said.map(|(rule, _)| rule),
        }
    }
}

impl Matcher {
    /// Whether what it permits may be recorded or not. Programs always are.
    pub fn has_level(&self) -> bool {
        match self {
            Self::Path { access, .. } => access & access::EXEC == 0,
            Self::Command { .. } => false,
            Self::Network { .. } | Self::Name { .. } => true,
        }
    }
}
