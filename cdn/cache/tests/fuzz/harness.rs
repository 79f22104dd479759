//! Makes inputs from seeds, and from what came of those. Owns the dice, the pool, and the search for a smaller failure.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher as _};
use std::panic::AssertUnwindSafe;

/// What `cargo test` makes of each target: under a second in a debug build.
const INPUTS_DEFAULT: u64 = 4_000;
/// Inputs that came out in a new way and are changed further. At a KiB each 4 MiB.
const POOL_MAX: usize = 4_096;
/// No field is read that is longer than the 64 KiB of a head; what is about limits shows at a few KiB.
const INPUT_BYTES_MAX: usize = 4_096;
/// Changes of one input.
const CHANGES_MAX: u64 = 5;
/// Times that a word is said over and over: more than any limit of a number of members.
const REPEATS_MAX: u64 = 200;
/// Ways of coming out that are remembered: 8 bytes each.
const OUTCOMES_MAX: usize = 1 << 20;

/// One parser, and what is known of it.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Set apart by empty lines.
    pub(crate) seeds: &'static str,
    /// What its inputs are made of.
    pub(crate) words: &'static [&'static str],
    /// What came out, in few words, or what is wrong with it.
    pub(crate) check: fn(&[u8]) -> Result<String, String>,
}

/// Runs a target; panics with the smallest input that fails.
pub(crate) fn run(target: &Target) {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    let (inputs, seed) = (number("SOUK_FUZZ_INPUTS", INPUTS_DEFAULT), number("SOUK_FUZZ_SEED", 1));
    let mut dice = Dice(seed ^ hash(target.name));
    let seeds: Vec<Vec<u8>> = target.seeds.split("\n\n").map(|seed| unescaped(seed.trim_end())).collect();
    let (mut pool, mut outcomes) = (Vec::new(), HashSet::new());
    for seed in &seeds {
        outcomes.insert(hash(&tried(target, seed)));
        pool.push(seed.clone());
    }
    for _ in 0..inputs {
        let input = changed(&pool, target.words, &mut dice);
        let outcome = hash(&tried(target, &input));
        if outcomes.len() < OUTCOMES_MAX && outcomes.insert(outcome) {
            if pool.len() < POOL_MAX {
                pool.push(input);
            } else {
                // The seeds stay.
                let place = seeds.len() + dice.below(POOL_MAX - seeds.len());
                pool[place] = input;
            }
        }
    }
}

/// What came out.
fn tried(target: &Target, input: &[u8]) -> String {
    match check(target, input) {
        Ok(outcome) => outcome,
        Err(_) => {
            let (least, why) = smallest(target, input.to_vec());
            panic!("{}: {why}\nas a seed: {}", target.name, escaped(&least));
        }
    }
}

fn check(target: &Target, input: &[u8]) -> Result<String, String> {
    std::panic::catch_unwind(AssertUnwindSafe(|| (target.check)(input))).unwrap_or_else(|panicked| {
        let said = panicked.downcast_ref::<String>().cloned();
        let said = said.or_else(|| panicked.downcast_ref::<&str>().map(|said| (*said).to_owned()));
        Err(format!("a panic: {}", said.unwrap_or_default()))
    })
}

/// Takes away whatever can be taken away without the failure going, too.
fn smallest(target: &Target, mut input: Vec<u8>) -> (Vec<u8>, String) {
    let mut why = check(target, &input).err().unwrap_or_default();
    let mut piece = input.len().max(1);
    while piece > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut less = input.clone();
            less.drain(at..(at + piece).min(less.len()));
            match check(target, &less) {
                Err(error) => (input, why) = (less, error),
                Ok(_) => at += piece,
            }
        }
        piece /= 2;
    }
    (input, why)
}

fn changed(pool: &[Vec<u8>], words: &[&str], dice: &mut Dice) -> Vec<u8> {
    let mut input = pool[dice.below(pool.len())].clone();
    for _ in 0..=dice.next() % CHANGES_MAX {
        change(&mut input, pool, words, dice);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn change(input: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&str], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = at + dice.below(input.len() - at + 1).min(dice.below(32) + 1);
    let word = words[dice.below(words.len())].as_bytes();
    match dice.next() % 11 {
        0 => drop(input.drain(at..end)),
        1 => drop(input.splice(at..at, word.iter().copied())),
        2 => drop(input.splice(at..end, word.iter().copied())),
        3 => {
            let piece = input[at..end].to_vec();
            let to = dice.below(input.len() + 1);
            drop(input.splice(to..to, piece));
        }
        4 => {
            let times = usize::try_from(dice.next() % REPEATS_MAX).expect("a small number");
            drop(input.splice(at..at, word.repeat(times)));
        }
        5 => {
            let other = &pool[dice.below(pool.len())];
            let from = dice.below(other.len() + 1);
            let to = from + dice.below(other.len() - from + 1);
            drop(input.splice(at..end, other[from..to].iter().copied()));
        }
        6 if at < input.len() => input[at] ^= 1 << (dice.next() % 8),
        7 if at < input.len() => input[at] = (dice.next() % 256) as u8,
        8 if at < input.len() && input[at].is_ascii_alphabetic() => input[at] ^= 0x20,
        // Next to where numbers end.
        9 => {
            const NUMBERS: [&str; 8] = [
                "0",
                "1",
                "7",
                "128",
                "2147483647",
                "4294967295",
                "18446744073709551615",
                "99999999999999999999",
            ];
            drop(input.splice(at..end, NUMBERS[dice.below(NUMBERS.len())].bytes()));
        }
        _ => {
            const MARKS: &[u8] = b" \t,;=\"\\'()<>-_/*+%\x00\x7f\xa0\xff\n";
            input.insert(at, MARKS[dice.below(MARKS.len())]);
        }
    }
}

fn hash(what: &(impl std::hash::Hash + ?Sized)) -> u64 {
    // The same in every run: it has no key.
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// A seed as it stands in its file: what is not plain is `\xHH`, and a backslash is two.
fn unescaped(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        let coded = bytes.get(at + 1..at + 4).filter(|coded| *byte == b'\\' && coded[0] == b'x');
        let coded =
            coded.and_then(|coded| u8::from_str_radix(std::str::from_utf8(&coded[1..]).ok()?, 16).ok());
        match coded {
            Some(coded) => {
                out.push(coded);
                at += 4;
            }
            None if *byte == b'\\' && bytes.get(at + 1) == Some(&b'\\') => {
                out.push(b'\\');
                at += 2;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}

fn escaped(input: &[u8]) -> String {
    let mut out = String::new();
    for byte in input {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push('\n'),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { usize::try_from(self.next() % end as u64).expect("below a usize") }
    }
}

#[test]
fn a_seed_is_what_it_was() {
    for input in [&b"a\\x\x00\xff\n\\\\x41"[..], b"", b"\\"] {
        assert_eq!(unescaped(&escaped(input)), input);
    }
}

#[test]
fn a_failure_is_made_small_and_told_as_a_seed() {
    fn has_two_quotes(input: &[u8]) -> Result<String, String> {
        let quotes = input.iter().filter(|byte| **byte == b'"').count();
        if quotes >= 2 { Err("two quotes".to_owned()) } else { Ok(quotes.to_string()) }
    }
    let target = Target { name: "quotes", seeds: "a", words: &["\"", "b"], check: has_two_quotes };
    let failed = std::panic::catch_unwind(|| run(&target)).expect_err("some input has two quotes");
    let said = failed.downcast_ref::<String>().expect("a text");
    assert_eq!(said, "quotes: two quotes\nas a seed: \"\"");
}
