//! All controllers and the scheduler over a fake fleet, in one thread, by one seed.
//!
//! ```text
//! seed ─► which key, which board, which fault, which wish is next ─► the real registry, cache, controllers, scheduler
//!           └─ faults: boards vanish, watches drop, caches lag (so writes conflict), writes fail or their answers are lost,
//!              the leader changes in the midst of a reconciliation, users change their minds
//! faults stop ─► in a bounded number of steps all is as it was asked for; pods are deleted while nobody watches ─► and again;
//!                then nothing is written any more
//! ```
//! What runs is the code that serves: only tokio's clock, random numbers and the storage's refusals are the simulation's
//! ([`crate::simulated`]). Boards are a few lines ([`board`]). `CORACLE_SEED=N` runs one seed and tells its steps,
//! `CORACLE_SEEDS=N` so many of them.
//!
//! Wishes: deployments with their services and autoscalers ([`wish`]), a daemon set, jobs, a stateful set ([`ordered`]), a cron job
//! ([`timed`]). Left out: figures of pods, so that autoscalers keep bounds and nothing else; events, whose writer is not run; and
//! the queues' own order, which has tables of its own: here any key that is due may be next.

mod board;
mod ordered;
mod term;
mod timed;
mod wish;

use crate::auth::Identity;
use crate::registry::{Registry, ServiceRange};
use crate::simulated::{self, Fault, Random};
use crate::storage::{Embedded, Storage};
use board::Board;
use std::collections::BTreeMap;
use std::time::Duration;
use term::{Term, Wanted};
use tokio::time::Instant;
use wish::Wishes;

/// Steps with faults.
const STEPS: usize = 500;
/// Steps without, until all must be as it was asked for.
const CONVERGE_STEPS_MAX: usize = 20_000;
/// … and the time for that: a board's silence, what pods tolerate of it, and back-offs.
const CONVERGE_TIME_MAX: Duration = Duration::from_secs(3600);
/// Longer than a deployment may take to make progress.
const DEADLINES: Duration = Duration::from_secs(700);
/// How long nothing may be written then.
const IDLE: Duration = Duration::from_secs(120);
const BOARDS: usize = 4;
/// Pods that are deleted unseen when all is as it was asked for.
const MISSED: usize = 3;
/// Silence after which a board is not believed to live.
const GRACE: Duration = Duration::from_secs(40);

struct Simulation {
    seed: u64,
    random: Random,
    registry: Registry,
    term: Term,
    boards: Vec<Board>,
    wishes: Wishes,
    trace: Vec<String>,
    told: bool,
}

impl Simulation {
    async fn begin(seed: u64, dir: &std::path::Path) -> Simulation {
        let storage = Storage::Embedded(Embedded::open(dir).expect("a store"));
        let services = ServiceRange::parse("10.96.0.0/16").expect("a range");
        let registry = Registry::new(storage, services, "");
        registry.bootstrap(6443).await.expect("a new cluster");
        let mut boards = Vec::new();
        for n in 1..=BOARDS {
            let mut board = Board::new(format!("board-{n}"));
            board.step(&registry, &mut Random::new(0)).await;
            boards.push(board);
        }
        Simulation {
            seed,
            random: Random::new(seed),
            term: Term::begin(&registry).await,
            registry,
            boards,
            wishes: Wishes::default(),
            trace: Vec::new(),
            told: std::env::var_os("CORACLE_SEED").is_some(),
        }
    }

    fn tell(&mut self, what: impl Into<String>) {
        use std::fmt::Write as _;
        use std::io::Write as _;
        let mut what = what.into();
        if self.told {
            writeln!(std::io::stderr(), "{what}").expect("standard error takes it");
        }
        let seen = self.term.watch.position().0;
        write!(what, " (seen: {seen})").expect("a String takes all");
        self.trace.push(what);
    }

    /// One step, with whatever may go wrong.
    async fn faulty_step(&mut self) {
        match self.random.below(100) {
            0..45 => {
                let ready = self.term.ready();
                if !ready.is_empty() {
                    let wanted = ready[self.random.below(ready.len())].clone();
                    self.look(wanted, true).await;
                }
            }
            45..55 => {
                self.term.schedule(self.registry.storage()).await;
                self.tell("schedule");
            }
            55..75 => self.board_step().await,
            75..83 => {
                self.term.catch_up(self.registry.storage()).await;
                self.tell("catch up");
            }
            83..86 => self.drop_watch().await,
            86..88 => {
                self.term = Term::begin(&self.registry).await;
                self.tell("another leads");
            }
            88..91 => {
                let index = self.random.below(self.boards.len());
                let forgotten = self.random.percent(30);
                let board = &mut self.boards[index];
                let what = match board.is_there {
                    true => "vanishes",
                    false if forgotten && board.forget(&self.registry).await => "is forgotten",
                    false => "is back",
                };
                board.is_there = what == "is back";
                let what = format!("{} {what}", board.name);
                self.tell(what);
            }
            91..96 => {
                let what = self.wishes.change(&self.registry, &mut self.random).await;
                self.tell(what);
            }
            _ => {
                let seconds = 1 + self.random.next() % 120;
                tokio::time::advance(Duration::from_secs(seconds)).await;
                self.tell(format!("{seconds} s pass"));
            }
        }
    }

    /// The watch is lost, after some that nobody has seen.
    async fn drop_watch(&mut self) {
        for _ in 0..self.random.below(8) {
            match self.random.below(3) {
                0 => {
                    let what = wish::delete_a_pod(&self.registry, &mut self.random).await;
                    self.tell(what);
                }
                1 => {
                    let what = self.wishes.change(&self.registry, &mut self.random).await;
                    self.tell(what);
                }
                _ => self.board_step().await,
            }
        }
        self.term.drop_watch().await;
        self.tell("the watch drops");
    }

    async fn board_step(&mut self) {
        let index = self.random.below(self.boards.len());
        if let Some(what) = self.boards[index].step(&self.registry, &mut self.random).await {
            let name = self.boards[index].name.clone();
            self.tell(format!("{name}: {what}"));
        }
    }

    async fn look(&mut self, wanted: Wanted, faulty: bool) {
        let fault = match self.random.below(12) {
            0 | 1 if faulty => Some(Fault::Before(self.random.below(2) as u32)),
            2 | 3 if faulty => Some(Fault::After(self.random.below(2) as u32)),
            _ => None,
        };
        // Somebody writes what is about to be written, and nobody has seen that yet.
        if faulty
            && self.random.percent(30)
            && board::touch(&self.registry, &wanted.1, self.trace.len()).await
        {
            self.tell(format!("somebody writes {}", wanted.1));
        }
        let what = format!("{} {}", self.term.controllers[wanted.0].name(), wanted.1);
        simulated::set_fault(fault);
        let outcome = self.term.look(wanted, self.registry.storage()).await;
        simulated::set_fault(None);
        let outcome = outcome.map_or_else(|error| format!("{:?}", error.reason), |()| "ok".into());
        let fault = fault.map(|fault| format!(" with {fault:?}")).unwrap_or_default();
        self.tell(format!("{what}{fault}: {outcome}"));
        // A leader that cannot write is one no longer.
        if !fault.is_empty() && self.random.percent(20) {
            self.term = Term::begin(&self.registry).await;
            self.tell("another leads");
        }
    }

    /// Nothing goes wrong any more: one round of whatever there is to do; whether there was anything.
    async fn fair_round(&mut self, steps: &mut usize) -> bool {
        let mut did = false;
        self.term.catch_up(self.registry.storage()).await;
        let mut ready = self.term.ready();
        while !ready.is_empty() {
            let wanted = ready.swap_remove(self.random.below(ready.len()));
            self.look(wanted, false).await;
            (did, *steps) = (true, *steps + 1);
        }
        did |= self.term.schedule(self.registry.storage()).await;
        for index in 0..self.boards.len() {
            while let Some(what) = self.boards[index].step(&self.registry, &mut self.random).await {
                let name = self.boards[index].name.clone();
                self.tell(format!("{name}: {what}"));
                (did, *steps) = (true, *steps + 1);
            }
        }
        did
    }

    async fn converge(&mut self) -> Result<(), String> {
        // Whatever one leader has missed, the next one does not know of: the last one misses something, too.
        self.drop_watch().await;
        self.tell("the faults stop");
        self.wishes.settle(&self.registry).await;
        self.boards.iter_mut().for_each(|board| board.is_there = true);
        let mut steps = 0;
        self.until_met(&mut steps).await?;
        // And once more, when nobody has anything to do: what was missed now, the list alone can tell.
        for _ in 0..MISSED {
            let what = wish::delete_a_pod(&self.registry, &mut self.random).await;
            self.tell(what);
        }
        self.drop_watch().await;
        self.wishes.settle(&self.registry).await;
        self.until_met(&mut steps).await?;
        // What cannot be had is told of when its time is over; then nothing is written but boards' signs of life.
        self.pass(DEADLINES, &mut steps).await?;
        let before = self.writes().await;
        self.pass(IDLE, &mut steps).await?;
        let after = self.writes().await;
        if before != after {
            let changed: Vec<&String> =
                after.iter().filter(|(key, at)| before.get(*key) != Some(at)).map(|(key, _)| key).collect();
            return Err(format!("all was done, and written was still: {changed:?}"));
        }
        self.wishes.unmet(&self.registry).await.map_or(Ok(()), Err)
    }

    /// Until all is as it was asked for.
    async fn until_met(&mut self, steps: &mut usize) -> Result<(), String> {
        let end = Instant::now() + CONVERGE_TIME_MAX;
        loop {
            while self.fair_round(steps).await {
                if *steps > CONVERGE_STEPS_MAX {
                    return Err(format!(
                        "no end after {steps} steps: {:?}",
                        self.wishes.unmet(&self.registry).await
                    ));
                }
            }
            match self.wishes.unmet(&self.registry).await {
                None => return Ok(()),
                Some(why) if Instant::now() > end => return Err(format!("not as asked for: {why}")),
                Some(_) => tokio::time::advance(Duration::from_secs(1)).await,
            }
        }
    }

    /// Lets time go by.
    async fn pass(&mut self, time: Duration, steps: &mut usize) -> Result<(), String> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::advance(Duration::from_secs(5)).await;
            while self.fair_round(steps).await {
                if *steps > CONVERGE_STEPS_MAX {
                    return Err(format!("no end after {steps} steps, when all was done"));
                }
            }
        }
        Ok(())
    }

    /// When each object was written last, but for leases.
    async fn writes(&self) -> BTreeMap<String, u64> {
        let query = crate::storage::ListQuery { prefix: "/registry/".into(), ..Default::default() };
        let page = self.registry.storage().list(&query).await.expect("the storage is there");
        let entries = page.entries.into_iter().filter(|entry| !entry.key.contains("/leases/"));
        entries.map(|entry| (entry.key.to_string(), entry.modified.0)).collect()
    }
}

/// Runs a seed to its end; what happened, and what is wrong at its end.
fn run(seed: u64) -> (Vec<String>, Result<(), String>) {
    // In memory: a write is a hundredth of what it costs on a disk.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    // Without tokio's budget, whose end depends on how often the storage thread was waited for.
    runtime.expect("a runtime").block_on(tokio::task::unconstrained(async {
        let _world = simulated::begin(seed);
        let mut simulation = Simulation::begin(seed, dir.path()).await;
        for _ in 0..STEPS {
            simulation.faulty_step().await;
        }
        let outcome = simulation.converge().await;
        (simulation.trace, outcome.map_err(|why| format!("seed {}: {why}", simulation.seed)))
    }))
}

fn who() -> Identity {
    Identity::component("system:simulator")
}

#[test]
fn when_faults_stop_all_is_as_it_was_asked_for() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("CORACLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CORACLE_SEEDS").unwrap_or(8),
    };
    let failed: Vec<String> = seeds.filter_map(|seed| run(seed).1.err()).collect();
    assert!(failed.is_empty(), "CORACLE_SEED=N tells each step:\n{}", failed.join("\n"));
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in [1, 4] {
        let (first, second) = (run(seed), run(seed));
        let differs = first.0.iter().zip(&second.0).position(|(a, b)| a != b);
        let at = differs.map(|index| (&first.0[index], &second.0[index]));
        assert_eq!(at, None, "seed {seed}");
        assert_eq!(first.0.len(), second.0.len(), "seed {seed}");
    }
}
