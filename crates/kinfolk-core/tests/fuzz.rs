//! Every target of `fuzz/` on its committed seeds, and on random mutants of those: no bytes make a decoder, or the reader of the
//! control stream, break a promise.
//!
//! `KINFOLK_FUZZ_RUNS` is the number of mutants per target. Inputs that failed are printed; each becomes a file in `fuzz/seeds/`, and is
//! tried first from then on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test may fail this way"
)]

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::{env, fs};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// About four seconds in debug, all targets together.
const RUNS_DEFAULT: u64 = 40_000;

/// Numbers begin and end at these, and lengths are among them.
const EDGES: [u8; 12] = [0, 1, 2, 3, 4, 8, 9, 0x3f, 0x40, 0x7f, 0x80, 0xff];

fn fuzz(name: &str, target: fn(&[u8])) {
    let seeds = seeds(name);
    assert!(!seeds.is_empty(), "fuzz/seeds/{name} is empty");
    for seed in &seeds {
        run(name, target, seed);
    }
    let runs = env::var("KINFOLK_FUZZ_RUNS").map_or(RUNS_DEFAULT, |runs| runs.parse().unwrap());
    let mut random = Random::new();
    for _ in 0..runs {
        run(name, target, &random.mutant(&seeds));
    }
}

fn run(name: &str, target: fn(&[u8]), bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(bytes))) {
        eprintln!("target {name} fails on b\"{}\"", bytes.escape_ascii());
        resume_unwind(panic);
    }
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let files = fs::read_dir(folder).expect("every target has seeds");
    files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

struct Random(ChaCha8Rng);

impl Random {
    /// Different in each run; what fails is printed and needs no seed.
    fn new() -> Self {
        Self(ChaCha8Rng::seed_from_u64(RandomState::new().hash_one(0)))
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap();
        usize::try_from(self.0.next_u64() % bound).unwrap()
    }

    fn byte(&mut self) -> u8 {
        if self.below(2) == 0 { EDGES[self.below(EDGES.len())] } else { self.0.next_u32() as u8 }
    }

    /// A range of positions, often short.
    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let from = self.below(len + 1);
        let most = (len - from).min(1 << self.below(7));
        from..from + self.below(most + 1)
    }

    fn mutant(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.byte(),
                2 => bytes.insert(at, self.byte()),
                3 => drop(bytes.drain(self.range(bytes.len()))),
                4 => bytes.truncate(at),
                5 => {
                    let copied = bytes[self.range(bytes.len())].to_vec();
                    bytes.splice(at..at, copied);
                }
                6 => {
                    let other = &seeds[self.below(seeds.len())];
                    bytes.splice(at.., other[self.range(other.len())].iter().copied());
                }
                _ => bytes.extend((0..self.below(9)).map(|_| self.byte()).collect::<Vec<_>>()),
            }
        }
        bytes
    }
}

#[test]
fn no_bytes_break_the_decoder_of_control_frames() {
    fuzz("control", targets::control);
}

#[test]
fn no_bytes_break_the_decoder_of_hello() {
    fuzz("hello", targets::hello);
}

#[test]
fn no_bytes_break_the_decoder_of_welcome() {
    fuzz("welcome", targets::welcome);
}

#[test]
fn no_bytes_break_the_decoder_of_goodbye() {
    fuzz("goodbye", targets::goodbye);
}

#[test]
fn no_bytes_break_the_decoder_of_extensions() {
    fuzz("extensions", targets::extensions);
}

#[test]
fn no_bytes_break_the_decoder_of_stream_headers() {
    fuzz("header", targets::header);
}

#[test]
fn no_bytes_break_the_decoder_of_answers_and_codes() {
    fuzz("answer", targets::answer);
}

#[test]
fn no_prefix_breaks_the_check_of_lengths() {
    fuzz("lengths", targets::lengths);
}

#[test]
fn no_bytes_break_the_decoder_of_protocol_names() {
    fuzz("protocol_name", targets::protocol_name);
}

#[test]
fn no_bytes_break_the_check_of_records() {
    fuzz("record", targets::record);
}

#[test]
fn no_text_and_no_bytes_behind_it_break_the_reader_of_tickets() {
    fuzz("ticket", targets::ticket);
}

#[test]
fn no_bytes_break_the_decoder_of_messages_of_an_exchange() {
    fuzz("exchange", targets::exchange);
}

#[test]
fn no_messages_break_an_exchange() {
    fuzz("exchange_turns", targets::exchange_turns);
}

#[test]
fn no_bytes_break_the_reader_of_the_control_stream() {
    fuzz("control_stream", targets::control_stream);
}

#[test]
fn no_bytes_break_the_decoder_of_answers_to_a_subscription() {
    fuzz("answered", targets::answered);
}

#[test]
fn no_bytes_break_the_decoder_of_what_a_consumer_sends() {
    fuzz("consumer_frame", targets::consumer_frame);
}

#[test]
fn no_bytes_break_the_decoder_of_control_entries() {
    fuzz("control_entry", targets::control_entry);
}

#[test]
fn no_bytes_break_the_decoder_of_datagrams() {
    fuzz("datagram", targets::datagram);
}

#[test]
fn no_bytes_and_no_cuts_break_the_reader_of_entries() {
    fuzz("entries", targets::entries);
}

#[test]
fn every_target_of_libfuzzer_has_seeds_and_a_test_here() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| -> BTreeSet<String> {
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let files = fs::read_dir(root.join(folder)).unwrap();
        files.map(|file| name(&file.unwrap().path())).collect()
    };
    let targets = names("fuzz/fuzz_targets");
    assert_eq!(names("fuzz/seeds"), targets);
    let tests = fs::read_to_string(root.join("tests/fuzz.rs")).unwrap();
    for target in targets {
        assert!(tests.contains(&format!("fuzz(\"{target}\", targets::{target})")), "{target}");
    }
}
