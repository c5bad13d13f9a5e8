//! The backends that run: one empty file each, named by its fencing token. Not in the lock directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub(crate) struct Backends(PathBuf);

impl Backends {
    pub(crate) fn new(directory: &Path) -> Self {
        let directory = directory.join("backends");
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn path(&self, key: &str, token: u64) -> PathBuf {
        self.0.join(format!("{key} {token}"))
    }

    pub(crate) fn start(&self, key: &str, token: u64) -> io::Result<()> {
        File::create_new(self.path(key, token)).map(drop)
    }

    pub(crate) fn end(&self, key: &str, token: u64) {
        // Another one may have ended it.
        let _ = fs::remove_file(self.path(key, token));
    }

    /// Of several, that of the newest launch: a fencing token tells them apart.
    pub(crate) fn newest(&self, key: &str) -> Option<u64> {
        let tokens = fs::read_dir(&self.0).unwrap().flatten().filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let (of, token) = name.split_once(' ')?;
            (of == key).then(|| token.parse().ok())?
        });
        tokens.max()
    }
}
