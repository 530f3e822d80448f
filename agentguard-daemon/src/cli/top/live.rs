//! Where it comes from: looks at the daemon, lines of the log, keys and signals, until somebody quits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::keys::{Key, key_of};
use super::row::{RecordRow, text};
use super::screen::Screen;
use super::state::{Filter, Order, Reply, Say, State};
use super::{draw, look};
use crate::api::wire::{ApprovalRequest, Snapshot, Why};
use crate::api::{Client, ClientError};
use crate::approval::{Granted, Waiting};
use crate::cli::exit::Exit;
use crate::cli::report::CliError;

/// How often the screen is drawn at most.
const FRAME: Duration = Duration::from_millis(50);
/// How long keys are waited for before it is looked whether somebody still wants them.
const KEYS_WAIT: Duration = Duration::from_millis(200);
/// Agents whose last refusals are fetched at the start.
const PREFILLED: usize = 20;

/// Something happened.
enum News {
    Look(Box<Snapshot>),
    Lost(ClientError),
    Record(RecordRow),
    Key(Key),
    Resized,
    /// The terminal has gone.
    Gone,
    Done(String),
}

/// Shows it until somebody quits, or a signal comes.
pub async fn run(socket: &Path, every: Duration, mut state: State) -> Result<(), CliError> {
    let failed =
        |error| CliError::Other(Exit::InputOutput, format!("the terminal failed: {error}"));
    // Before the screen is taken: without a daemon, or without rights, that is what is said.
    let mut client = Client::connect(socket).await?;
    let first = look(&mut client).await?;
    for record in earlier(&mut client, &first).await {
        state.record(record);
    }
    state.look(first);
    let (sender, mut news) = mpsc::channel(1024);
    let mut stops = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::interrupt(),
    ] {
        stops.push(signal(kind).map_err(failed)?);
    }
    let mut screen = Screen::take().map_err(failed)?;
    let looking = tokio::spawn(looks(socket.to_owned(), every, sender.clone()));
    let mut listening = listen(socket, state.filter, &sender);
    read_keys(sender.clone());
    let mut frames = tokio::time::interval(FRAME);
    let mut changed = true;
    let [terminate, hangup, interrupt] = &mut stops[..] else {
        return Ok(());
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            _ = interrupt.recv() => break,
            _ = frames.tick(), if changed => {
                screen.terminal.draw(|frame| draw::draw(frame, &state)).map_err(failed)?;
                changed = false;
            }
            came = news.recv() => {
                changed = true;
                let order = match came {
                    Some(News::Key(key)) => state.press(key),
                    Some(News::Gone) | None => break,
                    Some(other) => { take(&mut state, other); None }
                };
                match order {
                    Some(Order::Quit) => break,
                    Some(Order::Listen(filter)) => {
                        listening.abort();
                        listening = listen(socket, filter, &sender);
                    }
                    Some(Order::Act(act, name)) => {
                        tokio::spawn(do_it(socket.to_owned(), act, name, sender.clone()));
                    }
                    Some(Order::Answer(reply)) => {
                        tokio::spawn(answer(socket.to_owned(), reply, sender.clone()));
                    }
                    None => {}
                }
            }
        }
    }
    looking.abort();
    listening.abort();
    Ok(())
}

fn take(state: &mut State, news: News) {
    match news {
        News::Look(snapshot) => {
            if state
                .message
                .as_deref()
                .is_some_and(|it| it.starts_with(NO_ANSWER))
            {
                state.message = None;
            }
            state.look(*snapshot);
        }
        News::Lost(error) => {
            let what = text(&error.to_string());
            state.message = Some(format!("{NO_ANSWER}{what}"));
        }
        News::Record(record) => state.record(record),
        News::Done(what) => state.message = Some(what),
        News::Key(_) | News::Resized | News::Gone => {}
    }
}

/// How it begins when the daemon is gone.
const NO_ANSWER: &str = "the daemon does not answer: ";

/// The last refusals of agents, oldest first.
async fn earlier(client: &mut Client, first: &Snapshot) -> Vec<RecordRow> {
    let mut found = Vec::new();
    for agent in first.agents.iter().take(PREFILLED) {
        let path = format!("/why?agent={}", agent.name);
        // An agent may have gone since.
        if let Ok(why) = client.ask::<Why>(Method::GET, &path).await {
            found.extend(why.refusals);
        }
    }
    found.sort_by_key(|record| record.seq);
    found.iter().map(RecordRow::of_record).collect()
}

async fn looks(socket: PathBuf, every: Duration, news: mpsc::Sender<News>) {
    let mut client = None;
    loop {
        tokio::time::sleep(every).await;
        let looked = match client.take() {
            Some(client) => Ok(client),
            None => Client::connect(&socket).await,
        };
        let looked = match looked {
            Ok(mut connected) => {
                let looked = look(&mut connected).await;
                // One that failed is not used again: the daemon may have been started anew.
                client = looked.is_ok().then_some(connected);
                looked
            }
            Err(error) => Err(error),
        };
        let what = match looked {
            Ok(snapshot) => News::Look(Box::new(snapshot)),
            Err(error) => News::Lost(error),
        };
        if news.send(what).await.is_err() {
            return;
        }
    }
}

/// Listens to records, again when the daemon was gone.
fn listen(socket: &Path, filter: Filter, news: &mpsc::Sender<News>) -> JoinHandle<()> {
    let (socket, news) = (socket.to_owned(), news.clone());
    let query = match filter {
        Filter::Denials => "refused=true",
        Filter::All => "",
    };
    tokio::spawn(async move {
        loop {
            if let Ok(client) = Client::connect(&socket).await
                && let Ok(mut lines) = client.subscribe(query).await
            {
                while let Some(line) = lines.next().await {
                    let Some(record) = RecordRow::of(&line) else {
                        continue;
                    };
                    // Whoever cannot show them as fast as they come leaves some out; the log has all.
                    if matches!(
                        news.try_send(News::Record(record)),
                        Err(mpsc::error::TrySendError::Closed(_))
                    ) {
                        return;
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
}

/// Reads keys on a thread of its own, which ends with whoever listens.
fn read_keys(news: mpsc::Sender<News>) {
    std::thread::spawn(move || {
        while !news.is_closed() {
            match crossterm::event::poll(KEYS_WAIT) {
                Ok(false) => continue,
                Ok(true) => {}
                // The terminal is gone.
                Err(_) => break,
            }
            let Ok(event) = crossterm::event::read() else {
                break;
            };
            let what = match key_of(&event) {
                Some(key) => News::Key(key),
                None if matches!(event, crossterm::event::Event::Resize(..)) => News::Resized,
                None => continue,
            };
            if news.blocking_send(what).is_err() {
                return;
            }
        }
        // Nobody can quit any more. Where nobody listens, somebody has.
        let _ = news.blocking_send(News::Gone);
    });
}

async fn do_it(socket: PathBuf, act: &'static str, name: String, news: mpsc::Sender<News>) {
    let done = async {
        let mut client = Client::connect(&socket).await?;
        client
            .ask::<()>(Method::POST, &format!("/agents/{name}/{act}"))
            .await
    };
    let what = match done.await {
        Ok(()) => format!("{act} of {name}: done"),
        Err(error) => text(&format!("{act} of {name}: {error}")),
    };
    // Whoever pressed the key may have quit.
    let _ = news.send(News::Done(what)).await;
}

/// Says what an operator says, and looks what waits then.
async fn answer(socket: PathBuf, reply: Reply, news: mpsc::Sender<News>) {
    let Reply { id, what, deed } = reply;
    let done = async {
        let mut client = Client::connect(&socket).await?;
        let path = |act: &str| format!("/approvals/{id}/{act}");
        let done = match what {
            Say::Grant(scope, key) => {
                let key = Some(key);
                let request = ApprovalRequest { scope, key };
                let path = path("grant");
                let asked = client.ask_with::<Granted>(Method::POST, &path, &request);
                asked.await?;
                format!("granted {}", scope.text())
            }
            Say::Deny => {
                client.ask::<Waiting>(Method::POST, &path("deny")).await?;
                "denied".to_owned()
            }
            Say::Revoke => {
                client.ask::<Granted>(Method::POST, &path("revoke")).await?;
                "taken back".to_owned()
            }
        };
        // What is shown is what is true now, however long the next look is away.
        if let Ok(snapshot) = look(&mut client).await {
            let _ = news.send(News::Look(Box::new(snapshot))).await;
        }
        Ok::<_, ClientError>(done)
    };
    let what = match done.await {
        Ok(done) => text(&format!("{deed}: {done}")),
        Err(error) => text(&format!("{id}: {error}")),
    };
    // Whoever pressed the key may have quit.
    let _ = news.send(News::Done(what)).await;
}
