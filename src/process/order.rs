//! What a process is started with.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::sys::LifeLock;
use super::tie::Tie;

pub(super) struct Order {
    pub(super) command: Command,
    pub(super) tie: Tie,
    /// The lock for its life.
    pub(super) life: LifeLock,
    pub(super) log: File,
    /// Its working directory, unless the command names one.
    pub(super) directory: PathBuf,
    /// How long it gets to end once it is given up.
    pub(super) grace: Duration,
}

impl Order {
    /// The program, as the command names it.
    pub(super) fn program(&self) -> PathBuf {
        self.command.get_program().into()
    }

    /// The directory that it is started in.
    pub(super) fn place(&self) -> PathBuf {
        match self.command.get_current_dir() {
            Some(named) => named.to_owned(),
            // The program is looked up from the working directory: a path that is relative, as against a bare name.
            None if self.has_relative_path() => PathBuf::from("."),
            None => self.directory.clone(),
        }
    }

    /// Gives the command its outputs and its working directory.
    pub(super) fn set_up(&mut self) -> io::Result<()> {
        let (output, errors) = (self.log.try_clone()?, self.log.try_clone()?);
        self.command.stdout(output).stderr(errors);
        if self.command.get_current_dir().is_none() && !self.has_relative_path() {
            self.command.current_dir(&self.directory);
        }
        Ok(())
    }

    fn has_relative_path(&self) -> bool {
        let program = self.program();
        program.is_relative() && program.components().count() > 1
    }
}
