//! The node's key: given by the app, read from a file or the environment, or drawn anew.
//!
//! A key file holds 64 hex digits and a newline. It is created with mode 0600 if it is missing, and never written over.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use iroh::SecretKey;
use thiserror::Error;

/// Longest key file or variable that is looked at: the digits, and room for white space around them.
const LONGEST: usize = 256;

/// Where a node's key comes from.
#[derive(Debug, Clone, Default)]
pub(crate) enum Identity {
    #[default]
    Drawn,
    Key(SecretKey),
    File(PathBuf),
    Variable(String),
}

/// Why a key could not be loaded. The app or its machine is to blame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file could not be read or created.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file or variable holds no key.
    #[error("{place}: expected 64 hex digits, came {length} bytes that are not")]
    Malformed {
        /// The file or variable.
        place: String,
        /// How long its content is.
        length: usize,
    },
    /// Others than the owner may read the file.
    #[error("{path}: the key can be read by others (mode {mode:o}); make it 600")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The variable is not set.
    #[error("environment variable {0} is not set")]
    Unset(String),
}

impl Identity {
    /// The key. Reads, and at most creates, one small local file.
    pub(crate) fn load(self) -> Result<SecretKey, IdentityError> {
        match self {
            Self::Drawn => Ok(SecretKey::generate()),
            Self::Key(key) => Ok(key),
            Self::File(path) => from_file(&path),
            Self::Variable(name) => {
                let text = std::env::var(&name).map_err(|_| IdentityError::Unset(name.clone()))?;
                parse(text.as_bytes(), || format!("environment variable {name}"))
            }
        }
    }
}

fn from_file(path: &Path) -> Result<SecretKey, IdentityError> {
    let failed = |source| IdentityError::File { path: path.to_owned(), source };
    match read(path) {
        Ok(text) => {
            check_mode(path)?;
            parse(&text, || path.display().to_string())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate();
            match create(path, &key) {
                Ok(()) => Ok(key),
                // Another process was faster: its key is the one.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let text = read(path).map_err(failed)?;
                    check_mode(path)?;
                    parse(&text, || path.display().to_string())
                }
                Err(error) => Err(failed(error)),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Reads no more than shows that a file is too long.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX).saturating_add(1);
    std::fs::File::open(path)?.take(longest).read_to_end(&mut text)?;
    Ok(text)
}

/// Writes the key beside its place and links it there, so that nobody ever sees half a file and no other key is written over.
fn create(path: &Path, key: &SecretKey) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{:08x}", std::process::id(), rand::random::<u32>()));
    let draft = path.with_file_name(name);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&draft).and_then(|mut file| {
        let digits: String = key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        file.write_all(digits.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    });
    let linked = written.and_then(|()| std::fs::hard_link(&draft, path));
    // The draft is of no use any more, whatever happened.
    let _ = std::fs::remove_file(&draft);
    linked
}

#[cfg(unix)]
fn check_mode(path: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path)
        .map_err(|source| IdentityError::File { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(IdentityError::Exposed { path: path.to_owned(), mode })
    }
}

#[cfg(not(unix))]
fn check_mode(_path: &Path) -> Result<(), IdentityError> {
    Ok(())
}

fn parse(text: &[u8], place: impl Fn() -> String) -> Result<SecretKey, IdentityError> {
    let malformed = || IdentityError::Malformed { place: place(), length: text.len() };
    if text.len() > LONGEST {
        return Err(malformed());
    }
    let digits = text.trim_ascii();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut key = [0; 32];
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() != key.len() {
        return Err(malformed());
    }
    for (byte, [high, low]) in key.iter_mut().zip(pairs) {
        let (high, low) = digit(*high).zip(digit(*low)).ok_or_else(malformed)?;
        *byte = high << 4 | low;
    }
    Ok(SecretKey::from_bytes(&key))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("kinfolk-identity-{:016x}", rand::random::<u64>());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).expect("a new folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_missing_file_is_created_for_the_owner_alone_and_read_back() {
        let folder = Folder::new();
        let path = folder.0.join("key");
        let created = Identity::File(path.clone()).load().expect("created");
        let read = Identity::File(path.clone()).load().expect("read");
        assert_eq!(created.to_bytes(), read.to_bytes());
        assert_eq!(std::fs::read_dir(&folder.0).expect("listed").count(), 1, "a draft is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_file_that_holds_no_key_is_refused_and_left_alone() {
        let folder = Folder::new();
        for content in
            ["", "zz", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"a".repeat(9999)]
        {
            let path = folder.0.join("key");
            std::fs::write(&path, content).expect("written");
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt as _;
                let owner = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(&path, owner).expect("owner only");
            }
            let result = Identity::File(path.clone()).load();
            assert!(matches!(result, Err(IdentityError::Malformed { .. })), "{content:.10}");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), content);
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Folder::new();
        let path = folder.0.join("key");
        Identity::File(path.clone()).load().expect("created");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
        let result = Identity::File(path).load();
        assert!(matches!(result, Err(IdentityError::Exposed { mode: 0o644, .. })), "{result:?}");
    }

    #[test]
    fn a_folder_that_is_missing_is_reported_with_its_path() {
        let folder = Folder::new();
        let result = Identity::File(folder.0.join("missing").join("key")).load();
        let error = result.expect_err("no such folder").to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn an_unset_variable_is_reported_by_name() {
        let name = "KINFOLK_TEST_KEY_THAT_NOBODY_SETS".to_owned();
        let result = Identity::Variable(name.clone()).load();
        assert!(matches!(result, Err(IdentityError::Unset(unset)) if unset == name));
    }
    /// Set for the child of the test below, and for nobody else.
    const SET_FOR_THE_CHILD: &str = "KINFOLK_TEST_KEY_OF_THE_CHILD";

    #[test]
    fn a_key_in_a_variable_is_read_whatever_its_case_and_the_white_space_around_it() {
        let key = SecretKey::from_bytes(&std::array::from_fn(|place| place as u8 * 7 + 3));
        if std::env::var_os(SET_FOR_THE_CHILD).is_some() {
            let read = Identity::Variable(SET_FOR_THE_CHILD.to_owned()).load().expect("a key");
            assert_eq!(read.to_bytes(), key.to_bytes());
            return;
        }
        // A process may not safely change its own environment: this test runs once more, in a child that has the variable.
        let digits: String = key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let (_crate, module) = module_path!().split_once("::").expect("a module of a crate");
        let name = format!(
            "{module}::a_key_in_a_variable_is_read_whatever_its_case_and_the_white_space_around_it"
        );
        for value in [digits.clone(), digits.to_uppercase(), format!(" {digits}\r\n")] {
            let program = std::env::current_exe().expect("a test is a program");
            let child = std::process::Command::new(program)
                .args(["--exact", &name])
                .env(SET_FOR_THE_CHILD, &value)
                .output()
                .expect("the child runs");
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("1 passed"), "{value:?}: {said}");
        }
    }
}
