//! What a person sees while the swarm runs: a line for each phase, and below them a table of all nodes, redrawn in place.
//!
//! Where standard output is no terminal there is no table, but a plain line per second in phases that take longer.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kinfolk::{Metrics, Node};
use tokio::task::JoinSet;

use crate::member::Member;

/// Between two looks at the nodes.
const INTERVAL: Duration = Duration::from_millis(200);
/// Between two plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Up to this many nodes have a line of the table each, with more numbers in it.
const WIDE_ROWS: usize = 16;
/// How many nodes share a line otherwise.
const COLUMNS: usize = 3;

/// What becomes of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Up,
    Draining,
    Gone,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Draining => "draining",
            Self::Gone => "gone",
        }
    }
}

/// A handle of the one screen.
#[derive(Clone)]
pub struct Screen(Arc<Mutex<Board>>);

struct Board {
    began: Instant,
    terminal: bool,
    rows: Vec<Option<Row>>,
    /// Lines of the table that is on the screen now.
    drawn: usize,
    phase: &'static str,
    spoke: Instant,
    /// Calls and streams that nodes had done which have other numbers by now.
    done_before: u64,
}

struct Row {
    node: Node,
    state: State,
    metrics: Option<Metrics>,
}

/// A phase that is running.
pub struct Phase {
    screen: Screen,
    name: &'static str,
    began: Instant,
}

impl Phase {
    pub fn done(self, what: String) {
        let mut board = self.screen.board();
        let at = board.began.elapsed().as_secs_f64();
        let took = self.began.elapsed().as_secs_f64();
        board.print(&format!("{at:7.2} s  {:<10}  {what} ({took:.2} s)", self.name));
    }
}

impl Screen {
    pub fn new(size: usize) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(Board {
            began: now,
            terminal: std::io::stdout().is_terminal(),
            rows: (0..size).map(|_| None).collect(),
            drawn: 0,
            phase: "",
            spoke: now,
            done_before: 0,
        })))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self, name: &'static str) -> Phase {
        let mut board = self.board();
        board.phase = name;
        board.spoke = Instant::now();
        Phase { screen: self.clone(), name, began: Instant::now() }
    }

    /// The phase that began last.
    pub fn phase(&self) -> &'static str {
        self.board().phase
    }

    pub fn show(&self, member: &Member, state: State) {
        let node = member.node.clone();
        let mut board = self.board();
        let Some(row) = board.rows.get_mut(member.index) else { return };
        let metrics = row.take().and_then(|row| row.metrics);
        let same_life = state != State::Up;
        let before = metrics.as_ref().map_or(0, done);
        *row = Some(Row { node, state, metrics: metrics.filter(|_| same_life) });
        if !same_life {
            board.done_before += before;
        }
    }

    /// Prints a line above the table.
    pub fn say(&self, line: &str) {
        self.board().print(line);
    }

    /// Looks at the nodes again and again, and shows what they say.
    pub async fn watch(self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look().await;
            self.board().refresh();
        }
    }

    /// Asks every node for its numbers; a busy node may keep its old ones for once.
    async fn look(&self) {
        let nodes: Vec<_> = self.board().rows.iter().map(Row::running).collect();
        let mut answers = JoinSet::new();
        for (index, node) in nodes.into_iter().enumerate() {
            // A node that is gone has no more numbers; the row keeps the last.
            let Some(node) = node else { continue };
            answers.spawn(async move { (index, node.metrics().await) });
        }
        let all = async {
            while let Some(answer) = answers.join_next().await {
                let Ok((index, Ok(metrics))) = answer else { continue };
                if let Some(Some(row)) = self.board().rows.get_mut(index) {
                    row.metrics = Some(metrics);
                }
            }
        };
        let _ = tokio::time::timeout(INTERVAL, all).await;
    }

    /// The table as it is now.
    pub async fn table(&self) -> Vec<String> {
        self.look().await;
        self.board().table()
    }

    /// Takes the table off the screen, for good.
    pub fn finish(&self) {
        let mut board = self.board();
        let text = board.erased();
        board.rows.clear();
        put(&text);
    }
}

impl Row {
    fn running(row: &Option<Self>) -> Option<Node> {
        row.as_ref().filter(|row| row.state != State::Gone).map(|row| row.node.clone())
    }

    /// Nodes that it knows; none if it is gone.
    fn known(&self) -> usize {
        if self.state == State::Gone {
            return 0;
        }
        self.metrics.as_ref().map_or(0, |metrics| metrics.discovery.known)
    }

    /// Live sessions; none if the node is gone, whatever it last said.
    fn live(&self) -> usize {
        if self.state == State::Gone {
            return 0;
        }
        self.metrics.as_ref().map_or(0, |metrics| metrics.sessions.live)
    }
}

impl Board {
    fn print(&mut self, line: &str) {
        let mut text = self.erased();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
        self.spoke = Instant::now();
        self.draw(text);
    }

    fn refresh(&mut self) {
        if self.terminal {
            let text = self.erased();
            self.draw(text);
        } else if self.spoke.elapsed() >= PLAIN_INTERVAL {
            self.spoke = Instant::now();
            let line = format!(
                "{:7.2} s  {:<10}  … {}\n",
                self.began.elapsed().as_secs_f64(),
                self.phase,
                self.totals()
            );
            put(&line);
        }
    }

    /// What takes the table off the screen.
    fn erased(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\x1b[J"),
        }
    }

    fn draw(&mut self, mut text: String) {
        if self.terminal && self.rows.iter().any(Option::is_some) {
            let table = self.table();
            self.drawn = table.len();
            // Lines that are too long for the terminal are cut, as a wrapped one would spoil the next redraw.
            text.push_str("\x1b[?7l");
            for line in table {
                let _ = writeln!(text, "{line}");
            }
            text.push_str("\x1b[?7h");
        }
        put(&text);
    }

    fn totals(&self) -> String {
        let rows = || self.rows.iter().flatten();
        let running = || rows().filter(|row| row.state != State::Gone);
        let nodes = running().count();
        let live: usize = rows().map(Row::live).sum();
        let waiting: usize = running()
            .filter_map(|row| row.metrics.as_ref())
            .map(|numbers| numbers.intents_waiting)
            .sum();
        let now: u64 = rows().filter_map(|row| row.metrics.as_ref()).map(done).sum();
        let done = self.done_before + now;
        let known: usize = running()
            .filter_map(|row| row.metrics.as_ref())
            .map(|numbers| numbers.discovery.known)
            .sum();
        let pairs = self.rows.len() * self.rows.len().saturating_sub(1);
        format!(
            "{nodes} nodes, {known} of {pairs} known, {live} link ends, {waiting} intents waiting, {done} done"
        )
    }

    fn table(&self) -> Vec<String> {
        let elapsed = self.began.elapsed().as_secs_f64();
        let mut lines = vec![format!("{elapsed:7.2} s  {:<10}  {}", self.phase, self.totals())];
        let cells = self.rows.iter().enumerate();
        if self.rows.len() <= WIDE_ROWS {
            lines.push(
                "  node  id          state     known  peers   in  out  dial  wait   done  served     sent"
                    .to_owned(),
            );
            lines.extend(cells.map(|(index, row)| wide(index, row.as_ref(), self.rows.len())));
        } else {
            lines.push(
                "  node, id, state, how many it knows, how many it is connected to".to_owned(),
            );
            let cells: Vec<_> =
                cells.map(|(index, row)| narrow(index, row.as_ref(), self.rows.len())).collect();
            let height = cells.len().div_ceil(COLUMNS);
            lines.extend(
                (0..height).map(|line| {
                    cells.iter().skip(line).step_by(height).map(String::as_str).collect()
                }),
            );
        }
        lines
    }
}

/// A line of the table for one node.
fn wide(index: usize, row: Option<&Row>, size: usize) -> String {
    let Some(row) = row else { return format!("  {index:>4}") };
    let (id, state) = (row.node.id().fmt_short().to_string(), row.state.name());
    let peers = format!("{}/{}", row.live(), size - 1);
    let line = format!("  {index:>4}  {id}  {state:<8}  {:>5}  {peers:>5}", row.known());
    let Some(metrics) = row.metrics.as_ref().filter(|_| row.state != State::Gone) else {
        return line;
    };
    let sessions = &metrics.sessions;
    let done = done(metrics);
    let served: u64 = metrics.protocols.values().map(|protocol| protocol.served).sum();
    let sent: u64 = metrics.protocols.values().map(|protocol| protocol.bytes_sent).sum();
    format!(
        "{line}  {:>3}  {:>3}  {:>4}  {:>4}  {done:>5}  {served:>6}  {:>7}",
        sessions.inbound,
        sessions.outbound,
        sessions.dialling,
        metrics.intents_waiting,
        size_of(sent),
    )
}

/// A third of a line.
fn narrow(index: usize, row: Option<&Row>, size: usize) -> String {
    let Some(row) = row else { return format!("{index:>4}{:26}", "") };
    let id: String = row.node.id().fmt_short().to_string().chars().take(6).collect();
    let (state, known, live) = (row.state.name(), row.known(), row.live());
    format!("{index:>4} {id} {state:<8}{known:>3},{live:>3}/{:<2}", size - 1)
}

fn done(metrics: &Metrics) -> u64 {
    metrics.intents_ended.get("done").copied().unwrap_or_default()
}

/// A number of bytes for people.
pub fn size_of(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// Prints. A reader that has gone, such as `head`, is no reason to stop.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
