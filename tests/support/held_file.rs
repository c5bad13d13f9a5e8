//! Reading a lock file while its lock is held.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// What the file holds, but for its first byte, which reads as zero: that one is locked, and on Windows nobody else can read
/// what is locked.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    let mut content = vec![0];
    file.read_to_end(&mut content).unwrap();
    content
}
