//! The file of a store: one redb database, beside it the lock of the directory, and what had to be set aside.
//!
//! Everything here blocks. The lock is a file of its own that is never replaced: redb's lock goes with the file that it is on, so that
//! two nodes which find the same damaged file could each set aside what the other has just made.

use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use iroh::EndpointId;
use kinfolk_core::anchors::{ANCHORS_MAX, Anchor};
use kinfolk_core::id::{Incarnation, NetworkId};
use kinfolk_core::record::{Seq, UnixMillis};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::error::{AsideReason, SaveError, SetAside, StoreError};
use super::{INCARNATIONS_MAX, Recovered, row};

/// The database.
pub(super) const FILE: &str = "kinfolk.redb";
/// Whoever holds the lock on this file uses the directory.
const LOCK: &str = "kinfolk.lock";

/// Files that are set aside are `kinfolk.redb.1` to this number: the first ones show what went wrong, more of them would
/// only fill the disk (a guess).
pub(super) const ASIDE_MAX: u32 = 4;

/// The version of what is in the tables. A file with a larger one is not read.
pub(super) const SCHEMA: u64 = 1;

/// What redb may cache: the whole file is smaller.
const CACHE: usize = 1 << 20;

/// Whose file it is and single values.
const NODE: TableDefinition<&str, &[u8]> = TableDefinition::new("node");
/// Incarnations, the newest first.
const INCARNATIONS: TableDefinition<u64, u64> = TableDefinition::new("incarnations");
/// Anchors, the best first.
const PEERS: TableDefinition<u64, &[u8]> = TableDefinition::new("peers");

const KEY_SCHEMA: &str = "schema";
const KEY_ID: &str = "id";
const KEY_NETWORK: &str = "network";
const KEY_SEQ: &str = "seq";
const KEY_SAVED_AT: &str = "peers saved at";

/// Whose file it has to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) id: EndpointId,
    pub(super) network: NetworkId,
}

/// What the file says beyond its owner. Cloning it copies no anchors.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) seq: Option<Seq>,
    pub(super) incarnations: Vec<Incarnation>,
    pub(super) peers: Arc<[Anchor]>,
}

impl Facts {
    pub(super) fn of(recovered: &Recovered) -> Self {
        Self {
            seq: recovered.last_seq,
            incarnations: recovered.incarnations.clone(),
            peers: recovered.peers.clone().into(),
        }
    }
}

/// Which facts have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) seq: bool,
    pub(super) incarnations: bool,
    pub(super) peers: bool,
}

impl Changes {
    const ALL: Self = Self { seq: true, incarnations: true, peers: true };

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            seq: self.seq || other.seq,
            incarnations: self.incarnations || other.incarnations,
            peers: self.peers || other.peers,
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// A directory that this node has to itself, and the database in it.
#[derive(Debug)]
pub(super) struct Disk {
    owner: Owner,
    path: PathBuf,
    /// `None` after a write that failed: redb then wants its file to be opened anew.
    database: Option<Database>,
    /// After the database, so that it is let go last.
    _lock: Lock,
}

/// The lock of a directory.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    /// Closing the file is not enough: a process that this one is just starting holds it open as well, for a moment.
    fn drop(&mut self) {
        // Then closing it has to do.
        let _ = self.0.unlock();
    }
}

/// Why a file could not be opened as this node's store.
enum Unfit {
    /// It has to make room.
    Aside(AsideReason),
    /// Somebody has it open, somebody who knows no lock of the directory.
    InUse,
    /// The system does not let us.
    Failed(io::Error),
}

impl From<Unfit> for io::Error {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Failed(error) => error,
            Unfit::InUse => Self::other("another program has opened the file"),
            // That is what has just taken the place of one that was set aside.
            Unfit::Aside(reason) => Self::other(reason.to_string()),
        }
    }
}

impl Disk {
    pub(super) fn open(directory: &Path, owner: Owner) -> Result<(Self, Recovered), StoreError> {
        let lock = lock(directory)?;
        let path = directory.join(FILE);
        let (database, recovered) = open(&path, owner).map_err(|unfit| match unfit {
            Unfit::InUse => StoreError::InUse { directory: directory.to_owned() },
            unfit => StoreError::Unusable { path: path.clone(), source: unfit.into() },
        })?;
        Ok((Self { owner, path, database: Some(database), _lock: lock }, recovered))
    }

    /// Writes the facts that have changed, all of them if the file had to be replaced, and returns what was set aside then. What it has
    /// written is durable.
    pub(super) fn save(
        &mut self,
        facts: &Facts,
        changes: Changes,
    ) -> Result<Option<SetAside>, SaveError> {
        let failed =
            |source| SaveError::Write { path: self.path.clone(), source: Arc::new(source) };
        let (database, aside) = match self.database.take() {
            Some(database) => (database, None),
            None => {
                let opened = open(&self.path, self.owner);
                let (database, recovered) = opened.map_err(|unfit| failed(unfit.into()))?;
                (database, recovered.set_aside)
            }
        };
        let changes = if aside.is_some() { Changes::ALL } else { changes };
        write(&database, facts, changes).map_err(failed)?;
        self.database = Some(database);
        Ok(aside)
    }
}

/// The lock of the directory, which is made if it is missing.
fn lock(directory: &Path) -> Result<Lock, StoreError> {
    let unusable = |path: &Path, source| StoreError::Unusable { path: path.to_owned(), source };
    let mut builder = fs::DirBuilder::new();
    // Whom a node knows is nobody else's business.
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(unusable(directory, error));
        }
        _ => {}
    }
    let path = directory.join(LOCK);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| unusable(&path, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(error)) => Err(unusable(&path, error)),
    }
}

/// Opens the file, or sets it aside and makes another one.
fn open(path: &Path, owner: Owner) -> Result<(Database, Recovered), Unfit> {
    match open_once(path, owner) {
        Err(Unfit::Aside(reason)) => {
            let kept = set_aside(path).map_err(Unfit::Failed)?;
            let (database, recovered) = open_once(path, owner)?;
            let set_aside = Some(SetAside { reason, kept });
            Ok((database, Recovered { set_aside, ..recovered }))
        }
        opened => opened,
    }
}

/// Moves the file out of the way without touching what is there, and returns where to. Nobody else does so at the same
/// time, by the lock of the directory.
fn set_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    for number in 1..=ASIDE_MAX {
        let place = path.with_extension(format!("redb.{number}"));
        match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(path, &place)?;
                return Ok(Some(place));
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    fs::remove_file(path)?;
    Ok(None)
}

/// Opens the file and reads it; one that is missing or empty is made. redb checks every page of it, since it is small, and is
/// watched all the same: whatever is in a file, it must not end the node.
fn open_once(path: &Path, owner: Owner) -> Result<(Database, Recovered), Unfit> {
    let is_new = !fs::exists(path).map_err(Unfit::Failed)?;
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
        let database = builder.create(path).map_err(|error| unfit(error.into()))?;
        let recovered = read(&database, owner)?;
        Ok((database, recovered))
    }));
    let opened = opened.unwrap_or_else(|_| {
        Err(Unfit::Aside(AsideReason::Unreadable("reading it made redb panic".to_owned())))
    })?;
    if is_new {
        sync_directory(path).map_err(Unfit::Failed)?;
    }
    Ok(opened)
}

/// Makes the name of a new file as durable as its content.
#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// What an error of redb says about the file.
fn unfit(error: redb::Error) -> Unfit {
    use redb::Error;
    match error {
        Error::Io(error) => match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Unfit::Aside(AsideReason::Unreadable(error.to_string()))
            }
            _ => Unfit::Failed(error),
        },
        Error::DatabaseAlreadyOpen | Error::LockProtocolMismatch => Unfit::InUse,
        Error::PreviousIo | Error::DatabaseClosed | Error::LockPoisoned(_) => {
            Unfit::Failed(io::Error::other(error))
        }
        error => Unfit::Aside(AsideReason::Unreadable(error.to_string())),
    }
}

fn unreadable(what: &str) -> Unfit {
    Unfit::Aside(AsideReason::Unreadable(what.to_owned()))
}

/// Reads a file that redb has opened, and makes it this node's if it is empty.
fn read(database: &Database, owner: Owner) -> Result<Recovered, Unfit> {
    let read = database.begin_read().map_err(|error| unfit(error.into()))?;
    let node = match read.open_table(NODE) {
        Ok(node) => node,
        Err(TableError::TableDoesNotExist(_)) => {
            let mut tables = read.list_tables().map_err(|error| unfit(error.into()))?;
            if tables.next().is_some() {
                return Err(unreadable("it is a database of another program"));
            }
            return found(database, owner).map(|()| Recovered::default()).map_err(unfit);
        }
        Err(error) => return Err(unfit(error.into())),
    };
    let value = |key: &str| -> Result<Option<Vec<u8>>, Unfit> {
        let value = node.get(key).map_err(|error| unfit(error.into()))?;
        Ok(value.map(|value| value.value().to_vec()))
    };
    let number = |key: &str| -> Result<Option<u64>, Unfit> {
        let bytes = value(key)?.map(<[u8; 8]>::try_from).transpose();
        bytes
            .map(|bytes| bytes.map(u64::from_be_bytes))
            .map_err(|_| unreadable("it holds no number where one belongs"))
    };
    // First of all, as everything else may mean something else in a newer one.
    match number(KEY_SCHEMA)? {
        Some(SCHEMA) => {}
        Some(newer) if newer > SCHEMA => {
            return Err(Unfit::Aside(AsideReason::NewerSchema(newer)));
        }
        _ => return Err(unreadable("it has no schema that ever was")),
    }
    let id = value(KEY_ID)?.and_then(|bytes| EndpointId::try_from(bytes.as_slice()).ok());
    let id = id.ok_or_else(|| unreadable("it is no node's"))?;
    if id != owner.id {
        return Err(Unfit::Aside(AsideReason::OtherNode(id)));
    }
    let network = value(KEY_NETWORK)?.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let network =
        network.map(NetworkId::from_bytes).ok_or_else(|| unreadable("it is of no network"))?;
    if network != owner.network {
        return Err(Unfit::Aside(AsideReason::OtherNetwork(network)));
    }
    let last_seq = number(KEY_SEQ)?.map(Seq::new);
    // The clock may have gone back since: what was believed once is believed again.
    let clock = now().max(UnixMillis::new(number(KEY_SAVED_AT)?.unwrap_or(0)));
    let mut recovered = Recovered { last_seq, ..Recovered::default() };
    let table = read.open_table(INCARNATIONS).map_err(|error| unfit(error.into()))?;
    for row in table.iter().map_err(|error| unfit(error.into()))?.take(INCARNATIONS_MAX) {
        let (_, number) = row.map_err(|error| unfit(error.into()))?;
        recovered.incarnations.push(Incarnation::new(number.value()));
    }
    let table = read.open_table(PEERS).map_err(|error| unfit(error.into()))?;
    for row in table.iter().map_err(|error| unfit(error.into()))?.take(ANCHORS_MAX) {
        let (_, bytes) = row.map_err(|error| unfit(error.into()))?;
        match row::decode(bytes.value(), network, clock) {
            Some(anchor) => recovered.peers.push(anchor),
            None => recovered.skipped = recovered.skipped.saturating_add(1),
        }
    }
    Ok(recovered)
}

/// Writes whose file it is into an empty one.
fn found(database: &Database, owner: Owner) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut node = write.open_table(NODE)?;
        node.insert(KEY_SCHEMA, SCHEMA.to_be_bytes().as_slice())?;
        node.insert(KEY_ID, owner.id.as_bytes().as_slice())?;
        node.insert(KEY_NETWORK, owner.network.as_bytes().as_slice())?;
        write.open_table(INCARNATIONS)?;
        write.open_table(PEERS)?;
    }
    Ok(write.commit()?)
}

/// Writes facts, all or none. A panic of redb is a failure like any other.
fn write(database: &Database, facts: &Facts, changes: Changes) -> io::Result<()> {
    let written = catch_unwind(AssertUnwindSafe(|| write_facts(database, facts, changes)));
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(redb::Error::Io(error))) => Err(error),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::other("writing made redb panic")),
    }
}

fn write_facts(database: &Database, facts: &Facts, changes: Changes) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    {
        let mut node = write.open_table(NODE)?;
        if let Some(seq) = facts.seq.filter(|_| changes.seq) {
            node.insert(KEY_SEQ, seq.get().to_be_bytes().as_slice())?;
        }
        if changes.peers {
            node.insert(KEY_SAVED_AT, now().get().to_be_bytes().as_slice())?;
        }
    }
    if changes.incarnations {
        let mut table = write.open_table(INCARNATIONS)?;
        table.retain(|_, _| false)?;
        for (rank, incarnation) in (0..).zip(&facts.incarnations) {
            table.insert(rank, incarnation.get())?;
        }
    }
    if changes.peers {
        let mut table = write.open_table(PEERS)?;
        table.retain(|_, _| false)?;
        for (rank, anchor) in (0..).zip(facts.peers.iter()) {
            // No anchor is known that cannot be written; one would be no reason to lose the others.
            if let Ok(bytes) = row::encode(anchor) {
                table.insert(rank, bytes.as_slice())?;
            }
        }
    }
    Ok(write.commit()?)
}

fn now() -> UnixMillis {
    UnixMillis::from_unix(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default())
}
