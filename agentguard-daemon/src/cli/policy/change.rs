//! `agentguard policy diff`, `replay` and `learn`: changing a policy without surprises.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::{Common, unusable};
use crate::audit::learn::Lesson;
use crate::audit::replay::{Difference, Outcome, Replay};
use crate::cli::audit::each;
use crate::cli::audit::filter::Filter;
use crate::cli::exit::Exit;
use crate::cli::report::{CliError, has_colour, red};
use crate::cli::{LOG, print, print_json};
use crate::event::escape::printable;
use crate::policy::diff::{Change, Changes, RECORDED, UNRECORDED};
use crate::policy::{self};

/// Differences that are printed; the rest is counted (`--json` has all).
const SHOWN: usize = 50;

/// Arguments of `policy diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  agentguard policy diff coding-agent ./stricter.yaml
  agentguard policy diff old.yaml new.yaml --json

Compared is what they mean, not how they are written. Each line is one kind of difference, by section and by the two
rules that decide, with an example. What becomes permitted comes first; what is recorded no more, and what is from then
on, comes last.

Exit status: 0 they decide and record alike, 1 they differ, 2 one of them cannot be used.")]
pub struct DiffArgs {
    /// The policy as it was: a name or a path.
    #[arg(value_name = "A")]
    before: String,
    /// The policy as it would be.
    #[arg(value_name = "B")]
    after: String,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `policy replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard policy replay --policy ./stricter.yaml --agent claude --since 7d
  agentguard policy replay copy/audit.jsonl --policy coding-agent --set workspace=/work --json

Asked again is what rules, defaults and switches decided. What the kernel refused for another reason (a path that it
could not read, an object that is protected by its inode, a name that would widen) is counted, and not asked; nor is
a program whose arguments are not all in the log, where they decide, or a question to a name server. An address that a
name opened is judged by rules about addresses, and where none speaks by that name. Refusals in `mode: shadow` count as
refusals.

Exit status: 0 everything would be decided alike, 1 not everything, 2 the policy cannot be used.")]
pub struct ReplayArgs {
    /// The log.
    #[arg(value_name = "LOG", default_value = LOG)]
    log: PathBuf,
    /// The other policy: a name or a path.
    #[arg(long, short, value_name = "POLICY")]
    policy: String,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `policy learn`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard run -p permissive --name build --audit run.jsonl -- cargo build
  agentguard policy learn run.jsonl --as build > build.yaml
  agentguard policy replay run.jsonl --policy build.yaml
  sudo agentguard policy learn --session 7 --set workspace=/work > agent.yaml

Learnt is what was permitted, or went ahead in `mode: shadow`. Names that are made up anew in each run become
patterns, many files of a folder the folder; credentials are not widened. Hosts are learnt by name where the run had a
policy with rules by name. The policy is upon `base` unless the run did what that denies. It is replayed against the same records before it is printed.

Exit status: 0 done, 1 there is nothing to learn from.")]
pub struct LearnArgs {
    /// The log.
    #[arg(value_name = "LOG", default_value = LOG)]
    log: PathBuf,
    /// Name of the new policy.
    #[arg(long = "as", value_name = "NAME", default_value = "learnt", value_parser = policy_name)]
    called: String,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    common: Common,
}

fn policy_name(text: &str) -> Result<String, String> {
    if policy::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err("use up to 64 letters, digits, `-`, `_` and `.`".to_owned())
    }
}

pub fn diff(args: &DiffArgs) -> Result<ExitCode, CliError> {
    let options = args.common.options();
    let (before, after) = match (
        policy::load(&args.before, &options),
        policy::load(&args.after, &options),
    ) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => return unusable(&args.common, &error),
    };
    let changes = match policy::diff::diff(&before, &after) {
        Ok(changes) => changes,
        Err(error) => return unusable(&args.common, &error),
    };
    if args.common.json {
        print_json(&changes)?;
    } else {
        print(&changes_in_words(&changes))?;
    }
    let alike = changes.changes.is_empty() && changes.unfinished.is_empty();
    Ok(Exit::of(alike).into())
}

fn changes_in_words(changes: &Changes) -> String {
    let colour = has_colour(&std::io::stdout());
    if changes.changes.is_empty() && changes.unfinished.is_empty() {
        return "they decide and record alike\n".to_owned();
    }
    let line = |change: &Change| {
        let word = match &*change.is {
            RECORDED => "records".to_owned(),
            UNRECORDED => red("omits  ", colour),
            _ if change.section == "audit" => "changes".to_owned(),
            _ if change.widens => red("permits", colour),
            _ => "denies ".to_owned(),
        };
        format!(
            "{word}  {:8} {}\n         {} by {} -> {} by {}\n",
            change.section, change.example, change.was, change.was_by, change.is, change.is_by
        )
    };
    let mut text: String = changes.changes.iter().map(line).collect();
    for section in &changes.unfinished {
        let _ = writeln!(
            text,
            "{section}: too different to be compared to the end; there may be more"
        );
    }
    text
}

pub fn replay(args: &ReplayArgs) -> Result<ExitCode, CliError> {
    let policy = match policy::load(&args.policy, &args.common.options()) {
        Ok(policy) => policy,
        Err(error) => return unusable(&args.common, &error),
    };
    let mut replay = Replay::new(Arc::new(policy));
    each(&args.log, &args.filter.wanted(), |record| {
        replay.add(record);
    })?;
    let outcome = replay.finish();
    if args.common.json {
        print_json(&outcome)?;
    } else {
        print(&outcome_in_words(&outcome))?;
    }
    Ok(Exit::of(outcome.different == 0).into())
}

fn outcome_in_words(outcome: &Outcome) -> String {
    let colour = has_colour(&std::io::stdout());
    let mut text = String::new();
    for difference in outcome.differences.iter().take(SHOWN) {
        let word = if difference.would_be == "allow" {
            "would permit".to_owned()
        } else {
            red("would refuse", colour)
        };
        let _ = writeln!(
            text,
            "{word}  {}× {}  was {} by {}, would be {} by {} (first: record {})",
            difference.count,
            printable(&deed(difference)),
            printable(&difference.was),
            printable(&difference.was_by),
            difference.would_be,
            difference.by,
            difference.seq
        );
    }
    if outcome.differences.len() > SHOWN {
        let more = outcome.differences.len() - SHOWN;
        let _ = writeln!(text, "and {more} other actions (--json has them)");
    }
    let _ = writeln!(
        text,
        "{} records, {} asked again, {} that only the kernel can answer: {} would be decided otherwise ({} refused, {} permitted)",
        outcome.records,
        outcome.asked,
        outcome.not_asked,
        outcome.different,
        outcome.would_refuse,
        outcome.would_permit
    );
    text
}

fn deed(difference: &Difference) -> String {
    let mut text = difference.op.clone();
    if let Some(access) = difference
        .access
        .as_deref()
        .filter(|it| *it != difference.op)
    {
        let _ = write!(text, " {access}");
    }
    let _ = write!(text, " {}", difference.target);
    if let Some(to) = &difference.to {
        let _ = write!(text, " -> {to}");
    }
    for argument in difference.argv.iter().flatten().skip(1) {
        let _ = write!(text, " {argument}");
    }
    text
}

pub fn learn(args: &LearnArgs) -> Result<ExitCode, CliError> {
    let mut lesson = Lesson::default();
    each(&args.log, &args.filter.wanted(), |record| {
        lesson.add(record);
    })?;
    let (text, policy) = lesson
        .policy(&args.called, &args.common.options())
        .map_err(|error| CliError::Other(Exit::Failure, error.to_string()))?;
    if args.common.json {
        print_json(&serde_json::json!({
            "policy": text, "rules": policy.rules().len(), "records": lesson.learnt,
            "refused_and_not_learnt": lesson.refused,
        }))?;
    } else {
        print(&text)?;
        eprintln!(
            "agentguard: {} rules, from {} records; {} refused ones were not learnt. Replayed: no denial.",
            policy.rules().len(),
            lesson.learnt,
            lesson.refused
        );
    }
    Ok(Exit::Ok.into())
}
