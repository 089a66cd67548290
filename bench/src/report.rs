//! What a case measured: printed as it comes, drawn at the end.

use std::path::PathBuf;

use crate::figure::{self, Figure};
use crate::machine::Machine;
use crate::plot;

/// The figures of a case, on their way to whoever wants them.
pub struct Report {
    json: bool,
    /// Where plots go.
    plots: Option<PathBuf>,
    machine: Machine,
    figures: Vec<Figure>,
}

impl Report {
    /// Prints lines of JSON or a table, and draws into `plots`.
    pub fn new(json: bool, plots: Option<PathBuf>) -> Self {
        let machine = Machine::this();
        if !json {
            figure::print_head(&machine);
        }
        Self { json, plots, machine, figures: Vec::new() }
    }

    /// Prints a figure and keeps it.
    pub fn add(&mut self, figure: Figure) {
        figure.print(self.json.then_some(&self.machine));
        self.figures.push(figure);
    }

    /// Draws what there is.
    ///
    /// # Errors
    /// If a plot cannot be written.
    pub fn finish(self) -> Result<(), String> {
        let Some(folder) = &self.plots else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(|e| format!("--plot {}: {e}", folder.display()))?;
        for path in plot::draw_all(folder, &self.machine, &self.figures)? {
            eprintln!("drawn: {}", path.display());
        }
        Ok(())
    }
}
