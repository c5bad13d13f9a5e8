//! What is done to lock files. Each harm is noted before and after.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use spawn_gate::lock::LockName;

use crate::chance::Chance;
use crate::config::KEYS;
use crate::journal::{Event, Reader};

/// The harm to one key's lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    /// These make the path name another file.
    Delete,
    Replace,
    RemoveDirectory,
    /// These damage the ledger.
    Truncate,
    Junk,
    /// These are mended in the end.
    GiveAway,
    Forbid,
}

impl Harm {
    pub(crate) const ALL: [Self; 7] = [
        Self::Delete,
        Self::Replace,
        Self::RemoveDirectory,
        Self::Truncate,
        Self::Junk,
        Self::GiveAway,
        Self::Forbid,
    ];

    /// These leave file and ledger as they are.
    pub(crate) const OF_MODE: [Self; 2] = [Self::GiveAway, Self::Forbid];

    pub(crate) fn of(name: &str) -> Self {
        let named = Self::ALL.into_iter().find(|it| format!("{it:?}") == name);
        named.expect(name)
    }

    /// Whether the path names another file from then on.
    pub(crate) fn is_loss(self) -> bool {
        matches!(self, Self::Delete | Self::Replace | Self::RemoveDirectory)
    }

    /// Whether the ledger is another one from then on.
    pub(crate) fn is_of_ledger(self) -> bool {
        self.is_loss() || matches!(self, Self::Truncate | Self::Junk)
    }
}

pub(crate) fn lock_directory(directory: &Path) -> PathBuf {
    directory.join("locks")
}

pub(crate) fn lock_file(directory: &Path, key: &'static str) -> PathBuf {
    lock_directory(directory).join(LockName::new(&key).as_str())
}

/// Does harm to the lock file of the key. The file may be missing, and then nothing is done.
pub(crate) fn harm(
    directory: &Path,
    key: &'static str,
    harm: Harm,
    chance: &mut Chance,
    journal: &Reader,
) {
    let keys = match harm {
        Harm::RemoveDirectory => &KEYS[..],
        _ => &[key],
    };
    let note = |what: &str| {
        for key in keys {
            journal.note(&Event::new(what, 0, key).how(format!("{harm:?}")));
        }
    };
    let path = lock_file(directory, key);
    note("harm");
    // What cannot be done is not done: the file may be missing, or not this user's to write to at the moment.
    let _ = match harm {
        Harm::Delete => fs::remove_file(path),
        Harm::Replace => replace(directory, &path, chance),
        // Somebody may make a file in it meanwhile, and it then stays.
        Harm::RemoveDirectory => fs::remove_dir_all(lock_directory(directory)),
        Harm::Truncate => fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(chance.below(5_000))),
        Harm::Junk => write_junk(&path, chance),
        Harm::GiveAway => chmod(&path, 0o666),
        Harm::Forbid => chmod(&path, 0o000),
    };
    note("harmed");
}

/// Makes the modes of all lock files right.
pub(crate) fn mend(directory: &Path) {
    for key in KEYS {
        // It may be missing.
        let _ = chmod(&lock_file(directory, key), 0o600);
    }
}

fn chmod(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

fn replace(directory: &Path, path: &Path, chance: &mut Chance) -> std::io::Result<()> {
    let other = directory.join("other");
    match chance.below(3) {
        0 => drop(File::create(&other)?),
        1 => fs::write(&other, noise(chance))?,
        // With the ledger as it was.
        _ => drop(fs::copy(path, &other)?),
    }
    chmod(&other, 0o600)?;
    fs::rename(other, path)
}

fn write_junk(path: &Path, chance: &mut Chance) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(&noise(chance))
}

fn noise(chance: &mut Chance) -> Vec<u8> {
    let len = chance.below(6_000);
    (0..len).map(|_| chance.next() as u8).collect()
}
