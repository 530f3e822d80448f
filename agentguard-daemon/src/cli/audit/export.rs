//! `agentguard audit export`: records in other people's formats, once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::filter::Filter;
use crate::audit::find::Search;
use crate::audit::segment;
use crate::cli::LOG;
use crate::cli::exit::Exit;
use crate::cli::report::CliError;
use crate::disk;
use crate::export::otlp::{self, Encoder};
use crate::export::{Form, csv, host_name, ocsf};

/// Records of one line of `otlp-json`.
const REQUEST: usize = 100;

/// Arguments of `audit export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo agentguard audit export --format ocsf --since 1d --output day.jsonl
  sudo agentguard audit export --format csv --verdict deny | column -s, -t
  sudo agentguard audit export --format otlp-json --agent claude

Every record that fits is written, in the order of the log. A file gets its name when it is whole. The daemon can \
send records as they come: `sinks` in its configuration, `agentguard audit sinks`.")]
pub struct ExportArgs {
    /// What to write.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    filter: Filter,
    /// Write into this file instead of standard output; readable by its owner only.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Read all of the log, and do without indexes.
    #[arg(long)]
    no_index: bool,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = LOG)]
    file: PathBuf,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The lines of the log as they are.
    Jsonl,
    /// Events of OCSF, one a line.
    Ocsf,
    /// A table, with a column for each field.
    Csv,
    /// Requests of OTLP as JSON, one a line, as OpenTelemetry's file exporter writes them.
    OtlpJson,
}

pub fn run(args: &ExportArgs) -> Result<ExitCode, CliError> {
    match &args.output {
        None => {
            let output = BufWriter::with_capacity(256 << 10, io::stdout().lock());
            match export(args, output) {
                // Whoever read it has enough: `| head`.
                Err(Failed::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(Failed::Write(error)) => {
                    return Err(CliError::Other(
                        Exit::InputOutput,
                        format!("failed to print: {error}"),
                    ));
                }
                Err(Failed::Read(error)) => return Err(CliError::file("read", &args.file, &error)),
                Ok(()) => {}
            }
        }
        Some(path) => to_file(args, path)?,
    }
    Ok(Exit::Ok.into())
}

/// Writes beside the file, which is replaced when everything is written.
fn to_file(args: &ExportArgs, path: &Path) -> Result<(), CliError> {
    let part = segment::beside(path, ".part");
    let failed = |error: io::Error| CliError::file("write", path, &error);
    let file = disk::begin(&part).map_err(failed)?;
    let written = export(args, BufWriter::with_capacity(256 << 10, &file));
    let named = written.and_then(|()| name(&file, &part, path).map_err(Failed::Write));
    if named.is_err() {
        // The failure is what is told.
        let _ = std::fs::remove_file(&part);
    }
    named.map_err(|error| match error {
        Failed::Read(error) => CliError::file("read", &args.file, &error),
        Failed::Write(error) => failed(error),
    })
}

fn name(file: &File, part: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    std::fs::rename(part, path)?;
    disk::sync_folder(path)
}

/// Which side failed.
enum Failed {
    Read(io::Error),
    Write(io::Error),
}

fn export(args: &ExportArgs, output: impl Write) -> Result<(), Failed> {
    let mut writer = Writer::new(args.format, output);
    let mut search = Search {
        everywhere: args.no_index,
        ..Search::default()
    };
    let bar = super::verify::progress(0);
    let mut failed = writer.begin().err();
    if failed.is_none() {
        let read = search.each(&args.file, &args.filter.wanted(), |line, _| {
            bar.inc(line.len() as u64);
            failed = writer.take(line).err();
            failed.is_none()
        });
        read.map_err(Failed::Read)?;
    }
    let failed = failed.or_else(|| writer.end().err());
    bar.finish_and_clear();
    super::tell(&search);
    failed.map_or(Ok(()), |error| Err(Failed::Write(error)))
}

/// Writes records in one of the formats.
struct Writer<W> {
    format: Format,
    output: W,
    mapper: ocsf::Mapper,
    encoder: Encoder,
    /// Lines that are to become one request.
    waiting: Vec<Vec<u8>>,
}

impl<W: Write> Writer<W> {
    fn new(format: Format, output: W) -> Self {
        Self {
            format,
            output,
            mapper: ocsf::Mapper::here(),
            encoder: Encoder::new(&host_name(), Form::Record),
            waiting: Vec::new(),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.format == Format::Csv {
            self.output.write_all(csv::header().as_bytes())?;
        }
        Ok(())
    }

    fn take(&mut self, line: &[u8]) -> io::Result<()> {
        match self.format {
            Format::Jsonl => self.line(line),
            Format::Ocsf => {
                let event = self.mapper.line(line);
                self.line(&event)
            }
            Format::Csv => self.output.write_all(csv::line(line)?.as_bytes()),
            Format::OtlpJson => {
                self.waiting.push(line.to_vec());
                if self.waiting.len() >= REQUEST {
                    self.request()?;
                }
                Ok(())
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.request()?;
        }
        self.output.flush()
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        self.output.write_all(line)?;
        self.output.write_all(b"\n")
    }

    fn request(&mut self) -> io::Result<()> {
        let lines = self.waiting.iter().map(Vec::as_slice);
        let request = self.encoder.request(lines, otlp::now());
        serde_json::to_writer(&mut self.output, &request)?;
        self.waiting.clear();
        self.output.write_all(b"\n")
    }
}
