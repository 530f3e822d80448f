//! `agentguard policy`: check, try, explain, compare and learn policies. Works without root and without a
//! daemon.

mod change;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agentguard_common::verdict::access;
use clap::{Args, Subcommand};
use miette::{GraphicalReportHandler, GraphicalTheme};
use serde::Serialize;

use crate::cli::exit::Exit;
use crate::cli::report::{CliError, has_colour, red};
use crate::cli::{POLICIES, print, print_json, variable};
use crate::policy::explain::Explanation;
use crate::policy::{self, LoadOptions, OwnedAction, Policy, PolicyError, TableStats, TestOutcome};

const HELP: &str = "\
Examples:
  agentguard policy check policies/*.yaml
  agentguard policy explain coding-agent --read ~/.ssh/id_rsa
  agentguard policy test my-policy.yaml --json
  agentguard policy schema > agentguard-policy.json";

/// Arguments of `policy`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Check policies: read them, run their tests, compile them, say how large they are.
    #[command(after_help = "\
Examples:
  agentguard policy check coding-agent
  agentguard policy check --set branch=main policies/*.yaml

Exit status: 0 all policies are good, 1 a test of a policy fails, 2 a policy cannot be used.")]
    Check(CheckArgs),
    /// Say what a policy decides about one action, by which rule, and what would allow it.
    #[command(after_help = "\
Examples:
  agentguard policy explain coding-agent --write /etc/hosts
  agentguard policy explain coding-agent --connect 169.254.169.254:80/tcp
  agentguard policy explain coding-agent --exec git push --force
  agentguard policy explain my-policy.yaml --model claude-sonnet-4-5
  agentguard policy explain my-policy.yaml --time now

Paths are what the kernel resolves: absolute, without links. A bare program name stands for
/usr/bin/NAME. `--exec` takes all that follows it.

Exit status: 0 the action is allowed, 1 it is denied, 2 the policy or the action cannot be used.")]
    Explain(ExplainArgs),
    /// Run the tests that a policy carries, and list them.
    #[command(after_help = "\
Examples:
  agentguard policy test my-policy.yaml
  agentguard policy test my-policy.yaml --failed

Exit status: 0 all tests hold, 1 a test fails, 2 the policy cannot be used.")]
    Test(TestArgs),
    /// Say what two policies decide differently, by meaning, with an example of each difference.
    Diff(change::DiffArgs),
    /// Say what a policy would have decided otherwise about the records of a log.
    Replay(change::ReplayArgs),
    /// Write the smallest policy under which a run could be done again, from the records of it.
    Learn(change::LearnArgs),
    /// Print the JSON Schema of policy files, for editors.
    #[command(after_help = "\
Example:
  agentguard policy schema > agentguard-policy.json
  # then begin a policy with:  # yaml-language-server: $schema=agentguard-policy.json")]
    Schema,
}

/// Where policies and the values of their variables come from.
#[derive(Debug, Args)]
struct Common {
    /// Set a variable; `workspace` is the current folder and `home` the home folder unless set.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable)]
    set: Vec<(String, String)>,
    /// Folder of policies given by name; before the built-in ones.
    #[arg(long, value_name = "DIR", default_value = POLICIES)]
    policies: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Policies: names or paths.
    #[arg(required = true, value_name = "POLICY")]
    files: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct TestArgs {
    /// The policy: a name or a path.
    #[arg(value_name = "POLICY")]
    file: String,
    /// List failures only.
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// The policy: a name or a path.
    #[arg(value_name = "POLICY")]
    file: String,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct ActionArgs {
    /// Open this path for reading.
    #[arg(long, value_name = "PATH")]
    read: Option<PathBuf>,
    /// Open this path for writing.
    #[arg(long, value_name = "PATH")]
    write: Option<PathBuf>,
    /// Run this command.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    exec: Option<Vec<std::ffi::OsString>>,
    /// Connect to `ADDRESS:PORT/PROTOCOL`, `unix:/PATH` or `unix:@NAME`.
    #[arg(long, value_name = "ADDR")]
    connect: Option<String>,
    /// Call this model through the gateway: which budgets it is charged to.
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Work at this moment (`now`, or `2026-12-31T18:00:00Z`): what the schedule says.
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// Listen at `ADDRESS:PORT/PROTOCOL`, or take the abstract name `unix:@NAME`.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

/// Runs the command.
pub fn run(args: PolicyArgs) -> Result<ExitCode, CliError> {
    match args.command {
        PolicyCommand::Check(args) => check(&args),
        PolicyCommand::Explain(args) => explain(args),
        PolicyCommand::Test(args) => test(&args),
        PolicyCommand::Diff(args) => change::diff(&args),
        PolicyCommand::Replay(args) => change::replay(&args),
        PolicyCommand::Learn(args) => change::learn(&args),
        PolicyCommand::Schema => {
            print_json(&schemars::schema_for!(policy::schema::Document)).map(|()| ExitCode::SUCCESS)
        }
    }
}

impl Common {
    fn options(&self) -> LoadOptions {
        let mut vars = BTreeMap::new();
        if let Ok(folder) = std::env::current_dir() {
            vars.insert(
                "workspace".to_owned(),
                folder.to_string_lossy().into_owned(),
            );
        }
        if let Some(home) = crate::agent::own_home() {
            // Rules see resolved paths. A home that cannot be resolved is nobody's here.
            let home = policy::places::nearest(&home).unwrap_or(home);
            vars.insert("home".to_owned(), home.to_string_lossy().into_owned());
        }
        vars.extend(self.set.iter().cloned());
        LoadOptions {
            search: vec![self.policies.clone()],
            vars,
            own: policy::own::usual(),
        }
    }
}

/// A policy that cannot be used, as JSON.
#[derive(Debug, Serialize)]
struct Problem {
    message: String,
    help: String,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
}

impl Problem {
    fn of(error: &PolicyError) -> Self {
        let (file, line, column) = match error.place() {
            Some((file, line, column)) => (Some(file), Some(line), Some(column)),
            None => (None, None, None),
        };
        Self {
            message: error.to_string(),
            help: error.help_text().to_owned(),
            file,
            line,
            column,
        }
    }
}

/// Prints a diagnostic for people.
fn complain(error: &PolicyError) {
    let theme = if has_colour(&std::io::stderr()) {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let mut text = String::new();
    if GraphicalReportHandler::new_themed(theme)
        .render_report(&mut text, error)
        .is_err()
    {
        text = error.to_string();
    }
    eprintln!("{}", text.trim_end());
}

/// What `check` says about one policy.
#[derive(Debug, Serialize)]
struct Checked {
    policy: String,
    name: Option<String>,
    files: Vec<String>,
    rules: usize,
    budgets: usize,
    /// Budgets of calls that wait for a section `models`.
    budgets_waiting: usize,
    tests: usize,
    failures: Vec<Failure>,
    table: Option<TableStats>,
    error: Option<Problem>,
}

/// A test that does not hold.
#[derive(Debug, Serialize)]
struct Failure {
    test: String,
    file: String,
    line: u32,
    found: Option<String>,
}

impl Failure {
    fn of(outcome: &TestOutcome) -> Self {
        Self {
            test: outcome.description.clone(),
            file: outcome.file.display().to_string(),
            line: outcome.line,
            found: outcome.failure.clone(),
        }
    }
}

fn check(args: &CheckArgs) -> Result<ExitCode, CliError> {
    let options = args.common.options();
    let mut results = Vec::new();
    for file in &args.files {
        let checked = policy::load(file, &options).and_then(|policy| {
            let table = policy.compile(1)?;
            Ok((policy, table.stats))
        });
        let result = match checked {
            Ok((policy, stats)) => passed(file, &policy, stats),
            Err(error) => {
                if !args.common.json {
                    complain(&error);
                }
                refused(file, &error)
            }
        };
        if !args.common.json {
            print(&summary(&result))?;
        }
        results.push(result);
    }
    if args.common.json {
        print_json(&results)?;
    }
    let exit = if results.iter().any(|result| result.error.is_some()) {
        Exit::Usage
    } else if results.iter().any(|result| !result.failures.is_empty()) {
        Exit::Failure
    } else {
        Exit::Ok
    };
    Ok(exit.into())
}

fn passed(file: &str, policy: &Policy, stats: TableStats) -> Checked {
    let outcomes = policy.run_inline_tests();
    Checked {
        policy: file.to_owned(),
        name: Some(policy.name().to_owned()),
        files: policy
            .files()
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        rules: policy.rules().len(),
        budgets: policy.limits().budgets.len(),
        budgets_waiting: policy.limits().asleep.len(),
        tests: outcomes.len(),
        failures: outcomes
            .iter()
            .filter(|outcome| outcome.failure.is_some())
            .map(Failure::of)
            .collect(),
        table: Some(stats),
        error: None,
    }
}

fn refused(file: &str, error: &PolicyError) -> Checked {
    Checked {
        policy: file.to_owned(),
        name: None,
        files: Vec::new(),
        rules: 0,
        budgets: 0,
        budgets_waiting: 0,
        tests: 0,
        failures: Vec::new(),
        table: None,
        error: Some(Problem::of(error)),
    }
}

fn summary(result: &Checked) -> String {
    let colour = has_colour(&std::io::stdout());
    let Some(stats) = &result.table else {
        return format!("{}  {}\n", red("refused", colour), result.policy);
    };
    let mut text = String::new();
    for failure in &result.failures {
        let _ = writeln!(text, "{}", failed_line(failure, colour));
    }
    let word = if result.failures.is_empty() {
        "ok     ".to_owned()
    } else {
        red("failed ", colour)
    };
    let _ = writeln!(
        text,
        "{word} {}: {} rules, {}{} tests{}, {} states, {} KiB",
        result.policy,
        result.rules,
        budgets(result),
        result.tests,
        if result.failures.is_empty() {
            String::new()
        } else {
            format!(" ({} fail)", result.failures.len())
        },
        stats.states(),
        stats.bytes.div_ceil(1024),
    );
    text
}

/// How many budgets, with what follows.
fn budgets(result: &Checked) -> String {
    let holding = match result.budgets {
        1 => "1 budget".to_owned(),
        count => format!("{count} budgets"),
    };
    match (result.budgets, result.budgets_waiting) {
        (0, 0) => String::new(),
        (_, 0) => format!("{holding}, "),
        (_, waiting) => format!("{holding} ({waiting} more wait for `models`), "),
    }
}

fn failed_line(failure: &Failure, colour: bool) -> String {
    let found = failure.found.as_deref().unwrap_or_default();
    format!(
        "{}  {}:{}: {}: {found}",
        red("FAIL", colour),
        failure.file,
        failure.line,
        failure.test
    )
}

fn test(args: &TestArgs) -> Result<ExitCode, CliError> {
    let policy = match policy::load(&args.file, &args.common.options()) {
        Ok(policy) => policy,
        Err(error) => return unusable(&args.common, &error),
    };
    let outcomes = policy.run_inline_tests();
    let listed: Vec<&TestOutcome> = outcomes
        .iter()
        .filter(|outcome| !args.failed || outcome.failure.is_some())
        .collect();
    let failures = outcomes
        .iter()
        .filter(|outcome| outcome.failure.is_some())
        .count();
    if args.common.json {
        print_json(
            &listed
                .iter()
                .map(|outcome| Failure::of(outcome))
                .collect::<Vec<_>>(),
        )?;
    } else {
        let colour = has_colour(&std::io::stdout());
        let mut text = String::new();
        for outcome in listed {
            let line = match outcome.failure {
                Some(_) => failed_line(&Failure::of(outcome), colour),
                None => format!("ok    {}", outcome.description),
            };
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{} tests, {failures} fail", outcomes.len());
        print(&text)?;
    }
    Ok(Exit::of(failures == 0).into())
}

fn unusable(common: &Common, error: &PolicyError) -> Result<ExitCode, CliError> {
    if common.json {
        print_json(&Problem::of(error))?;
    } else {
        complain(error);
    }
    Ok(Exit::Usage.into())
}

fn explain(args: ExplainArgs) -> Result<ExitCode, CliError> {
    let time = args.action.time.as_deref().map(moment).transpose()?;
    let model = args.action.model.clone();
    let action = match (&time, &model) {
        (None, None) => Some(action(args.action)?),
        _ => None,
    };
    let policy = match policy::load(&args.file, &args.common.options()) {
        Ok(policy) => policy,
        Err(error) => return unusable(&args.common, &error),
    };
    let json = args.common.json;
    let Some(action) = action else {
        return Ok(match (time, model) {
            (Some(time), _) => super::limits::time(&policy, time, json)?,
            (None, model) => super::limits::model(&policy, &model.unwrap_or_default(), json)?,
        }
        .into());
    };
    let explanation = policy.explain(&action);
    if args.common.json {
        print_json(&explanation)?;
    } else {
        print(&in_words(&explanation, policy.name()))?;
    }
    Ok(Exit::of(explanation.verdict == "allow").into())
}

fn moment(text: &str) -> Result<jiff::Timestamp, CliError> {
    if text == "now" {
        return Ok(jiff::Timestamp::now());
    }
    policy::limits::moment(text).ok_or_else(|| {
        let what = format!(
            "`{}` is no moment; write `now`, or `2026-12-31T18:00:00Z`",
            text.escape_debug()
        );
        CliError::Other(Exit::Usage, what)
    })
}

fn action(args: ActionArgs) -> Result<OwnedAction, CliError> {
    let wrong = |message: String| CliError::Other(Exit::Usage, message);
    let path = |path: &Path, access| {
        let bytes = path.as_os_str().as_bytes();
        if bytes.first() == Some(&b'/') {
            Ok(OwnedAction::Path {
                path: bytes.to_vec(),
                access,
            })
        } else {
            Err(wrong(format!(
                "{} is not an absolute path; rules see what the kernel resolves",
                path.display()
            )))
        }
    };
    match args {
        ActionArgs {
            read: Some(read), ..
        } => path(&read, access::READ),
        ActionArgs {
            write: Some(write), ..
        } => path(&write, access::WRITE),
        ActionArgs {
            exec: Some(words), ..
        } => {
            // One word with spaces is a command line.
            let command = match words.as_slice() {
                [one] => one.to_str().and_then(OwnedAction::command),
                _ => OwnedAction::argv(
                    words
                        .into_iter()
                        .map(std::ffi::OsString::into_vec)
                        .collect(),
                ),
            };
            command.ok_or_else(|| wrong("the command is empty".to_owned()))
        }
        ActionArgs {
            connect: Some(text),
            ..
        } => OwnedAction::of_network(&text, false)
            .map_err(|error| wrong(format!("{text}: {}; {}", error.message, error.help))),
        ActionArgs {
            listen: Some(text), ..
        } => OwnedAction::of_network(&text, true)
            .map_err(|error| wrong(format!("{text}: {}; {}", error.message, error.help))),
        ActionArgs { .. } => Err(wrong("no action is given".to_owned())),
    }
}

fn in_words(explanation: &Explanation, policy: &str) -> String {
    let colour = has_colour(&std::io::stdout());
    let word = match explanation.verdict {
        "allow" => "ALLOWED".to_owned(),
        "ask" => red("DENIED (an operator may grant it)", colour),
        _ => red("DENIED", colour),
    };
    let mut text = format!("{word}  {}\n", explanation.action);
    match &explanation.rule {
        Some(rule) => {
            let _ = writeln!(text, "  rule:    {} ({}:{})", rule.id, rule.file, rule.line);
            if let Some(reason) = &rule.reason {
                let _ = writeln!(text, "  reason:  {reason}");
            }
        }
        None if explanation.cause == "unix-socket" => {
            let _ = writeln!(text, "  cause:   {policy} does not permit Unix sockets");
        }
        None => {
            let _ = writeln!(text, "  cause:   the default of {policy}: no rule matches");
        }
    }
    if !explanation.matching.is_empty() {
        let _ = writeln!(text, "  matching rules (the strictest wins):");
    }
    for rule in &explanation.matching {
        let _ = writeln!(
            text,
            "    {:5} {} ({}:{})",
            rule.verdict, rule.id, rule.file, rule.line
        );
    }
    if !explanation.to_allow.is_empty() {
        let _ = writeln!(text, "  to allow it:");
    }
    for step in &explanation.to_allow {
        let _ = writeln!(text, "    {step}");
    }
    text
}
