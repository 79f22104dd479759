//! What the corpus costs the neighbours: their p99 in quiet and in hostile rounds, and the memory of every process.
//!
//! `cargo test --release -p souk-tests --test it corpus -- --include-ignored --nocapture --test-threads=1` prints it under
//! the table of outcomes. It wants a quiet machine and some minutes, and is left out unless it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use souk_tests::demo::{Demo, one_product, until};
use souk_tests::load::{Call, Machine, apart, paced};
use souk_tests::say;

use super::super::hostile_corpus::Hostile;
use super::super::hostile_corpus::bombs::DEAR;
use super::super::hostile_corpus::hooks::HOOKS;
use super::{GOOD_PLUGIN, Neighbour, Villain, said};

/// Most plugins of one chain.
const CHAIN_MAX: usize = 16;
/// Rounds of each chain of the corpus, which is 16 plugins, and as many quiet ones.
const ROUNDS: usize = 3;
/// The same of each component that is dear to compile.
const DEAR_ROUNDS: usize = 2;
const ROUND: Duration = Duration::from_secs(2);
/// The neighbour's shoppers and the villain's, the same in every round.
const NEIGHBOUR_EVERY: Duration = Duration::from_millis(4);
const VILLAIN_EVERY: Duration = Duration::from_millis(10);
/// How often somebody looks at the memory of the processes, in quiet rounds and in others.
const MEMORY_EVERY: Duration = Duration::from_millis(250);

#[tokio::test]
#[ignore = "a measurement of three minutes, for a quiet machine"]
async fn neighbours_p99_holds_while_the_corpus_runs() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("neighbours_p99_holds_while_the_corpus_runs", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let villain = Villain::open(&demo).await?;
    let neighbour = Neighbour::open(&demo).await?;
    let hostile: Vec<Vec<&Hostile>> = HOOKS.chunks(CHAIN_MAX).map(|chain| chain.iter().collect()).collect();
    let honest = [&GOOD_PLUGIN];

    // Everything once: compiled, cached, warm.
    for chain in &hostile {
        villain.deploy(chain).await?;
        let _ = villain.traffic(Duration::from_millis(200)).await?;
    }
    villain.deploy(&honest).await?;
    let memory = MemoryWatch::start(&demo)?;
    let machine = Machine::watch()?;
    let (mut quiet, mut during) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for chain in &hostile {
            villain.deploy(&honest).await?;
            quiet.extend(neighbour.beside(&villain).await?);
            villain.deploy(chain).await?;
            during.extend(neighbour.beside(&villain).await?);
        }
    }
    villain.deploy(&honest).await?;
    let (mut idle, mut compiling) = (Vec::new(), Vec::new());
    for _ in 0..DEAR_ROUNDS {
        for (name, make) in DEAR {
            idle.extend(neighbour.beside(&villain).await?);
            compiling.extend(beside_compilations(&demo, &villain, &neighbour, name, &make()).await?);
        }
    }
    say(&format!(
        "another site, {} requests/s beside {} of the villain's quotes/s, in rounds of {ROUND:?} in turn:",
        1_000 / NEIGHBOUR_EVERY.as_millis(),
        1_000 / VILLAIN_EVERY.as_millis(),
    ));
    let seen = machine.undisturbed(vec![quiet, during, idle, compiling]);
    say(&seen[0].row("its neighbour's plugin is good", &seen[0]));
    say(&seen[1].row("its neighbour's are the corpus", &seen[0]));
    say(&seen[2].row("nobody compiles", &seen[2]));
    say(&seen[3].row("compile bombs are being compiled", &seen[2]));
    let processes = memory.end().await?;
    ensure!(demo.processes()?.len() == processes.len(), "a process of ours did not survive");
    for Memory { name, before, most, after } in processes {
        say(&format!("  memory of {name:<8} {before:>4} MiB before, {most:>4} at most, {after:>4} after"));
        ensure!(most < MEMORY_MIB_MAX, "{name} has had {most} MiB");
    }
    demo.stop().await
}

/// A neighbour's round while the villain offers a bomb again and again, each time as another component, so that there is
/// always one to compile. What is still being compiled after the round is stopped: what a bomb ends with is another test's
/// question and takes up to a minute of a processor each.
async fn beside_compilations(
    demo: &Demo,
    villain: &Villain<'_>,
    neighbour: &Neighbour,
    name: &str,
    bomb: &[u8],
) -> Result<Vec<Call>> {
    let mut last = None;
    let offers = async {
        for offer in 0_u32.. {
            let chain = [(GOOD_PLUGIN.name, (GOOD_PLUGIN.make)()), (name, another(bomb, offer))];
            // A region that is still at the last one may close before it has heard all of the next.
            let answer =
                villain.put(&chain).await.map_or_else(|error| format!("{error:#}"), |answer| said(&answer));
            last = Some((offer + 1, answer));
        }
    };
    let round = tokio::select! {
        round = neighbour.beside(villain) => round?,
        () = offers => bail!("{name}: offered no more"),
    };
    let still = compilers_of(demo)?;
    for pid in &still {
        // Whoever is through by now is gone.
        match kill(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context(format!("stop the compiler {pid}")),
        }
    }
    ensure!(last.is_some() || !still.is_empty(), "{name}: nothing was compiled in its round");
    let (answered, answer) = last.unwrap_or_else(|| (0, "none".to_owned()));
    say(&format!(
        "  ({name}: {answered} answered in its round, {} at work after it; last answer: {answer})",
        still.len()
    ));
    // The next round is a quiet one.
    villain.deploy(&[&GOOD_PLUGIN]).await?;
    until("compilers to end", async || {
        let left = compilers_of(demo)?;
        Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
    })
    .await?;
    Ok(round)
}

/// The same component with other bytes: a custom section at its end, which says nothing.
fn another(component: &[u8], number: u32) -> Vec<u8> {
    let mut bytes = component.to_vec();
    // Section 0, eight bytes long: a name of three, four of content.
    bytes.extend_from_slice(b"\x00\x08\x03nth");
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes
}

/// The processes in which the region and the nodes compile now.
fn compilers_of(demo: &Demo) -> Result<Vec<u32>> {
    let mut compilers = Vec::new();
    for (_, pid) in demo.processes()? {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may have ended since it was listed.
            let Ok(list) = std::fs::read_to_string(task?.path().join("children")) else { continue };
            compilers.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    Ok(compilers)
}

/// What a process of the demo may come to: the sandbox's pool and the caches, by far.
const MEMORY_MIB_MAX: u64 = 2_048;

/// Looks at the resident memory of every process of the demo, all the time.
struct MemoryWatch {
    ended: CancelOnDrop,
    seen: tokio::task::JoinHandle<Result<Vec<Memory>>>,
}

/// In MiB.
struct Memory {
    name: String,
    before: u64,
    most: u64,
    after: u64,
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl MemoryWatch {
    fn start(demo: &Demo) -> Result<Self> {
        let processes = demo.processes()?;
        let ended = Arc::new(AtomicBool::new(false));
        let seen = tokio::spawn({
            let ended = Arc::clone(&ended);
            async move {
                let mut seen: Vec<Memory> = Vec::new();
                while !ended.load(Ordering::Relaxed) {
                    let now = souk_tests::demo::memory_of(&processes)?;
                    if seen.is_empty() {
                        let first = now.iter().map(|(name, bytes)| (name.clone(), bytes >> 20));
                        let first =
                            first.map(|(name, mib)| Memory { name, before: mib, most: mib, after: mib });
                        seen = first.collect();
                    }
                    for (process, (_, bytes)) in seen.iter_mut().zip(&now) {
                        process.after = bytes >> 20;
                        process.most = process.most.max(process.after);
                    }
                    tokio::time::sleep(MEMORY_EVERY).await;
                }
                Ok(seen)
            }
        });
        Ok(Self { ended: CancelOnDrop(ended), seen })
    }

    async fn end(self) -> Result<Vec<Memory>> {
        drop(self.ended);
        self.seen.await?
    }
}

impl Villain<'_> {
    /// The villain's shoppers ask for quotes; what they get is theirs, but they do get it.
    async fn traffic(&self, time: Duration) -> Result<Vec<Call>> {
        let quotes = |_| {
            let shopper = self.shopper.clone();
            async move { shopper.get(&self.quote).await }
        };
        paced(VILLAIN_EVERY, time, quotes).await
    }
}

impl Neighbour {
    /// Products and quotes in turn, while the villain's shoppers are served too.
    async fn beside(&self, villain: &Villain<'_>) -> Result<Vec<Call>> {
        let (shopper, quote) = (self.shopper.afresh(), self.quote.clone());
        let neighbours = apart(async move || {
            // Opens the connection, which is no part of what is measured.
            shopper.get(&quote).await?;
            let calls = |call: usize| {
                let path = if call.is_multiple_of(2) { quote.clone() } else { one_product(call) };
                let shopper = shopper.clone();
                async move { shopper.get(&path).await }
            };
            paced(NEIGHBOUR_EVERY, ROUND, calls).await
        });
        let (seen, _) = tokio::try_join!(neighbours, villain.traffic(ROUND))?;
        Ok(seen)
    }
}
