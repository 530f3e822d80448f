//! Every metric: its name, what it counts, and by what.
//!
//! Whoever adds one adds it here; the manual has a table of all of them, and a test compares the two.

use std::fmt::Write as _;

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, while the daemon runs.
    Counter,
    /// Is what it is now.
    Gauge,
    /// Always 1; its labels say something.
    Info,
    /// How often values lay below bounds.
    Histogram,
}

impl Kind {
    /// Its name in the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Info => "info",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name as it is asked for, with `_total` or `_info`.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: Kind,
    /// Its unit by UCUM, as OpenTelemetry writes it; what is counted is in braces, which say it to people alone. Empty
    /// where there is none, or where it depends on a label. Only a ratio is `1`: others would be called ratios too
    /// wherever names are made of units.
    pub unit: &'static str,
    /// What tells its series from one another.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// Declares the metrics, and the list of all.
macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal $unit:literal [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                help: $help,
            };
        )+
        /// All, in the order in which they are told.
        pub const ALL: &[&Metric] = &[$(&$constant),+];
    };
}

metrics! {
    BUILD: Info "agentguard_build_info" "" ["version", "kernel"]
        "Version of the daemon, and of the kernel that enforces";
    START: Gauge "agentguard_start_time_seconds" "s" []
        "When the daemon started, in seconds since 1970";
    UPTIME: Gauge "agentguard_uptime_seconds" "s" []
        "Seconds since the daemon started; enforcement may be older";
    MEMORY: Gauge "process_resident_memory_bytes" "By" []
        "Memory of the daemon";
    PROCESSOR: Counter "process_cpu_seconds_total" "s" []
        "Processor time of the daemon";
    DESCRIPTORS: Gauge "process_open_fds" "{file_descriptor}" []
        "Descriptors that the daemon has open";

    AGENTS: Gauge "agentguard_agents" "{agent}" ["mode"]
        "Agents that are governed, by the mode of their policy (enforce, shadow)";
    AGENT: Info "agentguard_agent_info" "" ["agent", "policy", "mode"]
        "The policy of an agent, and its mode";
    PROCESSES: Gauge "agentguard_agent_processes" "{process}" ["agent"]
        "Processes in the agent's cgroup";
    FROZEN: Gauge "agentguard_agent_frozen" "" ["agent"]
        "1 while the agent stands still, else 0";
    GENERATION: Gauge "agentguard_policy_generation" "" ["agent"]
        "Generation of the policy in force; each one that is installed has a higher number";
    POLICY_CHANGES: Counter "agentguard_policy_changes_total" "{policy}" ["agent", "outcome"]
        "Policies that were read for an agent, the first one too: installed, or refused so that the one before stays in force";
    POLICY_REFUSED: Gauge "agentguard_policy_refused" "" ["agent"]
        "1 while the last policy that was read for the agent is one that was refused, else 0";

    VERDICTS: Counter "agentguard_verdicts_total" "{action}" ["agent", "verdict"]
        "Actions that were judged, by verdict (allow, deny, ask, would-deny); all four are there from the agent's start on";
    RECORDS: Counter "agentguard_records_total" "{record}" ["agent", "op", "verdict"]
        "Records, by operation and verdict; repeats that share one are counted each; without those that the log makes about itself";
    DENIALS: Counter "agentguard_denials_total" "{action}" ["agent", "rule", "cause", "verdict"]
        "Refusals (deny, ask, would-deny) by the rule that decided and the cause; a hundred rules of an agent have series of their own, the rest share the rule (other)";
    FAILURES: Counter "agentguard_kernel_failures_total" "{action}" ["agent", "op", "cause", "errno"]
        "Actions that were refused because something could not be found out in the kernel, by the operation, the cause and the error of the helper that failed";
    KERNEL_RECORDS: Counter "agentguard_kernel_records_total" "{record}" []
        "Records that came from the kernel";
    MALFORMED: Counter "agentguard_malformed_records_total" "{record}" []
        "Records from the kernel that could not be decoded";
    DISAGREEMENTS: Counter "agentguard_disagreements_total" "{record}" []
        "Records that the kernel and the reference matcher judge differently";
    ALARMS: Counter "agentguard_alarms_total" "{alarm}" []
        "Alarms of every kind, disagreements included";
    LOST: Counter "agentguard_records_lost_total" "{record}" ["class"]
        "Records that were lost and have a gap record: of allowed actions and of denials in the kernel's rings (counted since enforcement was loaded), and lines for which the log had no room (since the daemon started)";

    BATCH: Histogram "agentguard_batch_records" "{record}" []
        "Records that were read from the rings and written in one go";
    RING_SIZE: Gauge "agentguard_ring_size_bytes" "By" ["class"]
        "Size of a ring of the kernel";
    RING_USED: Gauge "agentguard_ring_used_bytes" "By" ["class"]
        "Bytes of a ring that were in use when the daemon looked last";
    RING_PEAK: Gauge "agentguard_ring_peak_bytes" "By" ["class"]
        "The most bytes of a ring that were in use when the daemon looked";

    LOG_RECORDS: Counter "agentguard_log_records_total" "{record}" []
        "Records that the log took, those about itself included";
    LOG_BYTES: Counter "agentguard_log_written_bytes_total" "By" []
        "Bytes that were written to the log";
    LOG_WAITING: Gauge "agentguard_log_waiting_bytes" "By" []
        "Bytes of lines that wait to be written to the log";
    LOG_SEGMENT: Gauge "agentguard_log_segment_bytes" "By" []
        "Size of the segment that is being written";
    LOG_SEGMENTS: Counter "agentguard_log_segments_closed_total" "{segment}" []
        "Segments that were closed";
    LOG_ERRORS: Counter "agentguard_log_errors_total" "{error}" []
        "Writes to the log that failed, and lines that could not be made";
    LOG_SYNC: Histogram "agentguard_log_sync_seconds" "s" []
        "How long the disk took to confirm what was written (fdatasync)";
    DISK_SIZE: Gauge "agentguard_log_disk_size_bytes" "By" []
        "Size of the file system that the log is on";
    DISK_FREE: Gauge "agentguard_log_disk_free_bytes" "By" []
        "What of it is free";

    BUDGET_SPENT: Gauge "agentguard_budget_spent" "" ["agent", "budget", "quantity"]
        "Spent of a budget in its present window; time in seconds, money in US dollars, all else as a number";
    BUDGET_RESERVED: Gauge "agentguard_budget_reserved" "" ["agent", "budget", "quantity"]
        "What calls under way may still take of it";
    BUDGET_LIMIT: Gauge "agentguard_budget_limit" "" ["agent", "budget", "quantity"]
        "Its limit, with what an operator granted";
    BUDGET_LEFT: Gauge "agentguard_budget_left" "" ["agent", "budget", "quantity"]
        "What is left of it";
    BUDGET_USED: Gauge "agentguard_budget_used_ratio" "1" ["agent", "budget", "quantity"]
        "Spent and reserved, as a part of the limit: 1 when nothing is left";
    LEDGER_BROKEN: Gauge "agentguard_ledger_broken" "" []
        "1 if the ledger of budgets cannot be used, so that nothing is granted, else 0";

    TRAFFIC_BYTES: Counter "agentguard_traffic_bytes_total" "By" ["agent", "direction"]
        "Bytes of IP, with headers, that an agent received (in) and sent (out)";
    TRAFFIC_PACKETS: Counter "agentguard_traffic_packets_total" "{packet}" ["agent", "direction"]
        "Packets that an agent received (in) and sent (out)";

    GATEWAY_CALLS: Counter "agentguard_gateway_calls_total" "{call}" ["agent", "provider", "outcome"]
        "Calls of models through the gateway: made, or refused, which has no provider";
    GATEWAY_TOKENS: Counter "agentguard_gateway_tokens_total" "{token}" ["agent", "provider", "kind"]
        "Tokens that calls took: input, of them cached, and output";
    GATEWAY_COST: Counter "agentguard_gateway_cost_usd_total" "{USD}" ["agent", "provider"]
        "What calls cost, in US dollars, where models have a price";
    WAITING: Gauge "agentguard_approvals_waiting" "{act}" []
        "Acts that wait for an operator's answer, without those that were denied";
    WEBHOOK: Counter "agentguard_webhook_questions_total" "{question}" ["outcome"]
        "Questions to the webhook of approvals: granted, denied, pending, failed (no answer), invalid (an answer that does not count), late (the act did not wait any more)";
    QUESTIONS: Counter "agentguard_resolver_questions_total" "{question}" ["agent", "verdict", "reply"]
        "Questions for names, by verdict and by what the agent was told (NOERROR, NXDOMAIN, REFUSED, …)";

    SINK_SENT: Counter "agentguard_sink_sent_records_total" "{record}" ["sink"]
        "Records that a sink has handed to the network since the daemon started; those that were sent again are counted again";
    SINK_WAITING: Gauge "agentguard_sink_waiting_records" "{record}" ["sink"]
        "Records that the receiver of a sink has not got yet; they wait in the log";
    SINK_TROUBLE: Gauge "agentguard_sink_in_trouble" "" ["sink"]
        "1 while a sink waits for another try, its receiver does not want what it is sent, or it cannot go on by itself, else 0";
    SINK_FAILURES: Counter "agentguard_sink_failures_total" "{try}" ["sink"]
        "Tries to send that failed";
    SINK_UNSENT: Counter "agentguard_sink_undelivered_records_total" "{record}" ["sink", "cause"]
        "Records that a receiver will never have: gone from the log before they could be sent (missing), thrown away by the receiver (rejected), or left out by an operator (skipped); counted since the sink first was there";

    PUSHES: Counter "agentguard_metrics_pushes_total" "{push}" ["outcome"]
        "Pushes of all metrics by OTLP: delivered, partial (the receiver says that it has thrown some away), or failed";
}

/// The table of all metrics, for the manual.
pub fn table() -> String {
    let mut table =
        "| metric | kind | unit | labels | what it says |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for metric in ALL {
        let labels: Vec<String> = metric.labels.iter().map(|it| format!("`{it}`")).collect();
        let unit = match metric.unit {
            "" => String::new(),
            unit => format!("`{unit}`"),
        };
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {unit} | {} | {} |",
            metric.name,
            metric.kind.name(),
            labels.join(", "),
            metric.help
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_say_kind_and_unit() {
        let mut names = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(
                name.starts_with("agentguard_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
            let has = |part: &str| name.split('_').any(|word| word == part);
            assert_eq!(has("seconds"), metric.unit == "s", "{name}");
            assert_eq!(has("bytes"), metric.unit == "By", "{name}");
            assert_eq!(has("ratio"), metric.unit == "1", "{name}");
            for label in metric.labels {
                assert!(
                    !["le", "quantile", "job", "instance"].contains(label),
                    "{name}"
                );
            }
            // They end up in a table, and in lines.
            assert!(!metric.help.contains(['|', '\n', '\\']), "{name}");
        }
    }
}
