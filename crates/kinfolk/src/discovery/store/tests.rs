//! The store with real files, in directories of their own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iroh::{SecretKey, TransportAddr};
use kinfolk_core::record::{Draft, UnixMillis};
use rand::{RngExt as _, SeedableRng as _};
use redb::{Database, TableDefinition};

use super::file::{ASIDE_MAX, FILE, SCHEMA};
use super::*;
use crate::discovery::child;

const NETWORK: &str = "store";
const PATIENCE: Duration = Duration::from_secs(20);

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("kinfolk-store-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.0.join(format!("{FILE}.{number}"))
    }

    async fn open(&self) -> (Store, Recovered) {
        open(&self.0, 1, NETWORK).await.expect("a store")
    }

    /// What is found, by a node that ends at once.
    async fn recover(&self) -> Recovered {
        let (store, recovered) = self.open().await;
        close(&store).await;
        recovered
    }

    /// Leaves a store with something of everything in it.
    async fn fill(&self) {
        let (store, _) = self.open().await;
        store.save_seq(Seq::new(77)).await.expect("saved");
        store.save_incarnation(Incarnation::new(5)).await.expect("saved");
        store.save_peers(anchors(3)).await.expect("saved");
        close(&store).await;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn open(path: &Path, number: u16, network: &str) -> Result<(Store, Recovered), StoreError> {
    Store::open(path, key(number).public(), NetworkId::from_name(network)).await
}

async fn close(store: &Store) {
    let closed = tokio::time::timeout(PATIENCE, store.close()).await;
    closed.expect("a store closes in time").expect("everything was saved");
}

fn key(number: u16) -> SecretKey {
    let [high, low] = number.to_be_bytes();
    SecretKey::from_bytes(&std::array::from_fn(|place| if place == 0 { high } else { low }))
}

fn anchor(number: u16, network: &str, at: UnixMillis) -> Anchor {
    let draft = Draft::new(NetworkId::from_name(network));
    let record = draft.sign(&key(number), Seq::new(1), at).expect("a record");
    let direct = TransportAddr::Ip("[2001:db8::1]:7".parse().expect("an address"));
    let relay = TransportAddr::Relay("https://r.example:9/".parse().expect("a URL"));
    Anchor::new(record, [direct, relay], UnixMillis::new(1_000 + u64::from(number)))
}

fn anchors(count: u16) -> Vec<Anchor> {
    (0..count).map(|number| anchor(100 + number, NETWORK, UnixMillis::new(900))).collect()
}

fn is_unreadable(recovered: &Recovered) -> bool {
    let reason = recovered.set_aside.as_ref().map(|aside| &aside.reason);
    matches!(reason, Some(AsideReason::Unreadable(_)))
}

#[tokio::test]
async fn what_was_saved_is_there_after_a_restart() {
    let folder = Folder::new();
    let first = folder.recover().await;
    assert_eq!(first.last_seq, None);
    assert_eq!(first.set_aside, None);
    folder.fill().await;
    let again = folder.recover().await;
    assert_eq!(again.last_seq, Some(Seq::new(77)));
    assert_eq!(again.incarnations, [Incarnation::new(5)]);
    assert_eq!(again.peers, anchors(3));
    assert_eq!((again.skipped, again.set_aside), (0, None));
}

#[tokio::test]
async fn a_directory_is_made_for_its_owner_alone_and_its_parent_is_not() {
    let folder = Folder::new();
    let inner = folder.0.join("state");
    let (store, _) = open(&inner, 1, NETWORK).await.expect("made");
    close(&store).await;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&inner).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
    let missing = folder.0.join("missing").join("state");
    let error = open(&missing, 1, NETWORK).await.expect_err("no parent");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_a_file_is_unusable() {
    let folder = Folder::new();
    let path = folder.0.join("state");
    std::fs::write(&path, "a file").expect("written");
    let error = open(&path, 1, NETWORK).await.expect_err("a file");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn the_newest_sixteen_incarnations_are_kept() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    for number in 0..20 {
        store.save_incarnation(Incarnation::new(number)).await.expect("saved");
    }
    close(&store).await;
    let newest: Vec<_> = (4..20).rev().map(Incarnation::new).collect();
    assert_eq!(folder.recover().await.incarnations, newest);
}

#[tokio::test]
async fn a_smaller_number_never_takes_the_place_of_a_larger_one() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    store.save_seq(Seq::new(9)).await.expect("saved");
    store.save_seq(Seq::new(3)).await.expect("saved");
    close(&store).await;
    assert_eq!(folder.recover().await.last_seq, Some(Seq::new(9)));
}

#[tokio::test]
async fn saves_at_the_same_time_are_all_answered_and_the_newest_peers_win() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    let mut saves = tokio::task::JoinSet::new();
    for number in 1..=100 {
        saves.spawn(store.save_seq(Seq::new(number)));
        saves.spawn(store.save_incarnation(Incarnation::new(number)));
        saves.spawn(store.save_peers(anchors(u16::try_from(number % 5 + 1).expect("small"))));
    }
    for saved in saves.join_all().await {
        saved.expect("saved");
    }
    close(&store).await;
    let recovered = folder.recover().await;
    assert_eq!(recovered.last_seq, Some(Seq::new(100)));
    assert_eq!(recovered.incarnations.len(), INCARNATIONS_MAX);
    assert_eq!(recovered.peers, anchors(1));
}

#[tokio::test]
async fn a_save_that_nobody_waits_for_is_made_before_the_store_is_closed() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    drop(store.save_seq(Seq::new(4)));
    close(&store).await;
    assert_eq!(folder.recover().await.last_seq, Some(Seq::new(4)));
    let late = store.save_seq(Seq::new(5)).await;
    assert!(matches!(late, Err(SaveError::Closed)), "{late:?}");
    close(&store).await;
}

#[tokio::test]
async fn more_peers_than_the_limit_are_cut_to_the_first() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    let peers = vec![anchor(1, NETWORK, UnixMillis::new(5)); ANCHORS_MAX + 9];
    store.save_peers(peers).await.expect("saved");
    close(&store).await;
    assert_eq!(folder.recover().await.peers.len(), ANCHORS_MAX);
}

#[tokio::test]
async fn a_directory_in_use_is_refused_until_it_is_closed() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    for number in [1, 2] {
        let error = open(&folder.0, number, NETWORK).await.expect_err("in use");
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&folder.0.display().to_string()), "{error}");
    }
    close(&store).await;
    folder.recover().await;
}

#[tokio::test]
async fn a_file_of_another_key_or_network_is_set_aside_whole() {
    let folder = Folder::new();
    folder.fill().await;
    let (store, recovered) = open(&folder.0, 2, NETWORK).await.expect("a store");
    close(&store).await;
    let reason = AsideReason::OtherNode(key(1).public());
    let kept = Some(folder.aside(1));
    assert_eq!(recovered.set_aside, Some(SetAside { reason, kept }));
    assert_eq!((recovered.last_seq, recovered.peers), (None, vec![]));
    let (store, recovered) = open(&folder.0, 2, "other").await.expect("a store");
    close(&store).await;
    let reason = AsideReason::OtherNetwork(NetworkId::from_name(NETWORK));
    assert_eq!(recovered.set_aside, Some(SetAside { reason, kept: Some(folder.aside(2)) }));
    // What was set aside is a store as good as ever.
    std::fs::rename(folder.aside(1), folder.file()).expect("renamed");
    assert_eq!(folder.recover().await.last_seq, Some(Seq::new(77)));
}

#[tokio::test]
async fn a_file_of_a_newer_schema_is_set_aside() {
    let folder = Folder::new();
    folder.fill().await;
    let database = Database::open(folder.file()).expect("a database");
    let write = database.begin_write().expect("begun");
    {
        let table: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("node");
        let newer = (SCHEMA + 1).to_be_bytes();
        let mut table = write.open_table(table).expect("a table");
        table.insert("schema", newer.as_slice()).expect("inserted");
    }
    write.commit().expect("committed");
    drop(database);
    let recovered = folder.recover().await;
    let reason = AsideReason::NewerSchema(SCHEMA + 1);
    assert_eq!(recovered.set_aside, Some(SetAside { reason, kept: Some(folder.aside(1)) }));
}

#[tokio::test]
async fn a_database_of_another_program_is_set_aside() {
    let folder = Folder::new();
    let database = Database::create(folder.file()).expect("a database");
    let write = database.begin_write().expect("begun");
    write.open_table(TableDefinition::<u64, u64>::new("theirs")).expect("a table");
    write.commit().expect("committed");
    drop(database);
    assert!(is_unreadable(&folder.recover().await));
}

#[tokio::test]
async fn what_was_set_aside_before_is_never_touched() {
    let folder = Folder::new();
    for number in 1..=ASIDE_MAX + 2 {
        std::fs::write(folder.file(), format!("garbage {number}")).expect("written");
        let recovered = folder.recover().await;
        assert!(is_unreadable(&recovered), "{recovered:?}");
        let kept = recovered.set_aside.expect("set aside").kept;
        assert_eq!(kept, (number <= ASIDE_MAX).then(|| folder.aside(number)));
    }
    for number in 1..=ASIDE_MAX {
        let kept = std::fs::read_to_string(folder.aside(number)).expect("kept");
        assert_eq!(kept, format!("garbage {number}"));
    }
    // The lock, the store, and those.
    let files = std::fs::read_dir(&folder.0).expect("listed").count();
    assert_eq!(files, 2 + usize::try_from(ASIDE_MAX).expect("small"));
}

#[tokio::test]
async fn a_file_cut_anywhere_is_read_whole_or_set_aside() {
    let folder = Folder::new();
    folder.fill().await;
    let whole = std::fs::read(folder.file()).expect("read");
    let mut cuts = 0;
    for length in (0..whole.len()).step_by(512) {
        std::fs::write(folder.file(), &whole[..length]).expect("written");
        let recovered = folder.recover().await;
        // Some of the file is room that redb has not used.
        let is_whole = recovered.set_aside.is_none() && recovered.last_seq == Some(Seq::new(77));
        let is_empty = length == 0 && recovered.set_aside.is_none();
        assert!(
            is_unreadable(&recovered) || is_whole || is_empty,
            "cut at {length}: {recovered:?}"
        );
        cuts += usize::from(is_unreadable(&recovered));
        let _ = std::fs::remove_file(folder.aside(1));
    }
    assert!(cuts > 1, "{cuts} of the cuts were noticed");
}

#[tokio::test]
async fn whatever_is_in_the_file_nothing_panics_and_nothing_wrong_is_believed() {
    let folder = Folder::new();
    folder.fill().await;
    let whole = std::fs::read(folder.file()).expect("read");
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..200 {
        let mut bytes = whole.clone();
        match round % 4 {
            // Anything at all.
            0 => {
                bytes.truncate(rng.random_range(0..20_000));
                rng.fill(bytes.as_mut_slice());
            }
            // A good header, and anything behind it.
            1 => rng.fill(&mut bytes[512..]),
            // A header with some of its bytes changed.
            2 => {
                for _ in 0..rng.random_range(1..8) {
                    bytes[rng.random_range(0..320)] = rng.random();
                }
            }
            // Some bytes changed anywhere.
            _ => {
                for _ in 0..rng.random_range(1..200) {
                    let place = rng.random_range(0..bytes.len());
                    bytes[place] = rng.random();
                }
            }
        }
        std::fs::write(folder.file(), &bytes).expect("written");
        let recovered = folder.recover().await;
        // Where redb finds the last commit damaged, it goes back to the one before.
        let is_true = recovered.last_seq.is_none_or(|seq| seq == Seq::new(77))
            && recovered.incarnations.iter().all(|incarnation| *incarnation == Incarnation::new(5))
            && recovered.peers.iter().all(|anchor| anchors(3).contains(anchor));
        let is_whole = recovered.set_aside.is_none() && is_true;
        assert!(is_unreadable(&recovered) || is_whole, "round {round}: {recovered:?}");
        let _ = std::fs::remove_file(folder.aside(1));
    }
}

#[tokio::test]
async fn peers_whose_records_do_not_verify_are_skipped_and_counted() {
    let folder = Folder::new();
    let future = UnixMillis::new(u64::MAX / 2);
    let peers = vec![
        anchor(1, NETWORK, UnixMillis::new(5)),
        anchor(2, "other", UnixMillis::new(5)),
        anchor(3, NETWORK, future),
    ];
    let (store, _) = folder.open().await;
    store.save_peers(peers.clone()).await.expect("saved");
    close(&store).await;
    let recovered = folder.recover().await;
    assert_eq!(recovered.peers, peers[..1]);
    assert_eq!(recovered.skipped, 2);
}

#[tokio::test]
async fn a_node_that_is_killed_has_lost_nothing_that_it_was_told_is_saved() {
    if let Some(path) = child::value() {
        let (store, _) = open(Path::new(&path), 1, NETWORK).await.expect("a store");
        for number in 1.. {
            store.save_seq(Seq::new(number)).await.expect("saved");
            drop(store.save_peers(anchors(9)));
            println!("\nsaved {number}");
        }
    }
    let folder = Folder::new();
    let name = "a_node_that_is_killed_has_lost_nothing_that_it_was_told_is_saved";
    let mut last = 0;
    for round in 1..=5_u64 {
        let mut command = child::command(&[], module_path!(), name, folder.text());
        let mut process = command.stdout(Stdio::piped()).spawn().expect("the child runs");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let numbers = output.lines().map_while(Result::ok);
        let numbers = numbers.filter_map(|line| line.strip_prefix("saved ")?.parse::<u64>().ok());
        let first = numbers.take(usize::try_from(round * 3).expect("small")).last();
        process.kill().expect("killed");
        process.wait().expect("waited for");
        last = last.max(first.expect("the child has saved"));
        let recovered = folder.recover().await;
        assert!(recovered.last_seq >= Some(Seq::new(last)), "{last} was saved: {recovered:?}");
        assert_eq!(recovered.set_aside, None);
    }
}

/// Runs the test as a child that has a small file system to itself, where mounts are possible.
fn with_small_disk(test: &str) {
    let folder = Folder::new();
    let script = "mount -t tmpfs -o size=3m tmpfs \"$0\" && exec \"$@\"";
    let before = ["unshare", "--mount", "sh", "-c", script, folder.text()];
    child::run(&before, module_path!(), test, folder.text());
}

fn fill_up(ballast: &Path) {
    let mut file = std::fs::File::create(ballast).expect("created");
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[tokio::test]
async fn a_full_disk_is_counted_and_once_there_is_room_everything_is_saved() {
    let Some(path) = child::value().map(PathBuf::from) else {
        with_small_disk("a_full_disk_is_counted_and_once_there_is_room_everything_is_saved");
        return;
    };
    let (store, _) = open(&path, 1, NETWORK).await.expect("a store");
    let ballast = path.join("ballast");
    fill_up(&ballast);
    let saved = async |number: u16| {
        let seq = store.save_seq(Seq::new(number.into())).await;
        let peers = store.save_peers(anchors(250)).await;
        seq.and(peers)
    };
    // Until what redb has put by is used up.
    let mut number = 1;
    let error = loop {
        match saved(number).await {
            Ok(()) if number < 200 => number += 1,
            Ok(()) => panic!("a full disk takes everything"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SaveError::Write { .. }), "{error}");
    let again = saved(number + 1).await;
    assert!(again.is_err() && store.failures() >= 2, "{again:?}");
    std::fs::remove_file(&ballast).expect("removed");
    close(&store).await;
    let (store, recovered) = open(&path, 1, NETWORK).await.expect("a store");
    assert_eq!(recovered.last_seq, Some(Seq::new(u64::from(number + 1))));
    assert_eq!((recovered.peers.len(), recovered.set_aside), (250, None));
    close(&store).await;
    // And a start on a disk that is full.
    std::fs::remove_file(path.join(FILE)).expect("removed");
    fill_up(&ballast);
    let error = open(&path, 1, NETWORK).await.expect_err("no room");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn a_directory_that_may_not_be_written_is_unusable() {
    let Some(path) = child::value().map(PathBuf::from) else {
        with_small_disk("a_directory_that_may_not_be_written_is_unusable");
        return;
    };
    let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(&path).status();
    assert!(remount.expect("mount runs").success());
    let error = open(&path, 1, NETWORK).await.expect_err("read-only");
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
}

#[test]
fn a_runtime_that_shuts_down_leaves_no_save_unanswered_and_the_directory_free() {
    let folder = Folder::new();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (store, _) = runtime.block_on(folder.open());
    drop(store.save_seq(Seq::new(3)));
    // It waits for the blocking task that runs.
    drop(runtime);
    let other = tokio::runtime::Runtime::new().expect("a runtime");
    let late = other.block_on(store.save_seq(Seq::new(4)));
    assert!(matches!(late, Err(SaveError::Closed)), "{late:?}");
    drop(store);
    let recovered = other.block_on(folder.recover());
    assert!(recovered.last_seq.is_none_or(|seq| seq == Seq::new(3)));
}

#[tokio::test]
async fn a_number_is_saved_whatever_became_of_the_peers_and_closing_tries_these_again() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    {
        // As a disk leaves it on which the number fitted and the peers did not.
        let mut state = lock(&store.inner.state);
        state.facts.peers = anchors(2).into();
        state.unsaved = Changes { peers: true, ..Changes::default() };
    }
    store.save_seq(Seq::new(6)).await.expect("saved");
    assert!(lock(&store.inner.state).unsaved.peers, "peers wait for the next save of peers");
    close(&store).await;
    let recovered = folder.recover().await;
    assert_eq!((recovered.last_seq, recovered.peers), (Some(Seq::new(6)), anchors(2)));
}

/// What one save takes, for the docs: run alone, with `--nocapture`.
#[tokio::test]
#[ignore = "a measurement that judges nothing: the command is in docs/testing.md"]
async fn how_long_saves_take() {
    let folder = Folder::new();
    let (store, _) = folder.open().await;
    let mut seqs = Vec::new();
    for number in 0..200 {
        let start = Instant::now();
        store.save_seq(Seq::new(number)).await.expect("saved");
        seqs.push(start.elapsed());
    }
    let mut lists = Vec::new();
    let list = anchors(256);
    for _ in 0..50 {
        let start = Instant::now();
        store.save_peers(list.clone()).await.expect("saved");
        lists.push(start.elapsed());
    }
    close(&store).await;
    let size = std::fs::metadata(folder.file()).expect("there").len();
    let start = Instant::now();
    let recovered = folder.recover().await;
    let opened = start.elapsed();
    seqs.sort();
    lists.sort();
    println!("seq: median {:?}, 95th of 100 {:?}", seqs[100], seqs[190]);
    println!("{} peers: median {:?}", list.len(), lists[25]);
    println!("{} peers read in {opened:?}; {size} bytes", recovered.peers.len());
}
