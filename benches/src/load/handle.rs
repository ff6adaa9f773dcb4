//! The load generator's handle: the generator is a process of its own that carries out one order at a time.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use benches::Result;

use super::order::{Order, Report};
use crate::process::on_core;

pub(crate) struct Load {
    process: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Load {
    /// Starts a load generator on this core, or on any core.
    pub(crate) fn start(core: Option<usize>) -> Result<Self> {
        let mut command = on_core(core, std::env::current_exe()?);
        let mut process = command.arg("load").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = process.stdin.take().ok_or("no pipe to the load generator")?;
        let reports = BufReader::new(process.stdout.take().ok_or("no pipe from the load generator")?);
        Ok(Self { process, orders, reports })
    }

    /// Carries out an order and returns its report. Fails if it had no result at all.
    pub(crate) fn order(&mut self, order: &Order) -> Result<Report> {
        self.begin(order)?;
        self.end()
    }

    /// Begins an order without waiting for its end.
    pub(crate) fn begin(&mut self, order: &Order) -> Result<()> {
        serde_json::to_writer(&self.orders, order)?;
        Ok(self.orders.write_all(b"\n")?)
    }

    /// Waits for the end of the order that was begun.
    pub(crate) fn end(&mut self) -> Result<Report> {
        let mut line = String::new();
        self.reports.read_line(&mut line)?;
        let report: Report =
            serde_json::from_str(&line).map_err(|error| format!("the load generator said {line:?}: {error}"))?;
        match &report.trouble {
            Some(trouble) if report.done == 0 => Err(trouble.clone().into()),
            _ => Ok(report),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
