//! What was measured: printed as a table for people, or a line of JSON each.

use crate::machine::Machine;

/// A figure of several runs.
pub struct Figure {
    /// Which case.
    pub case: &'static str,
    /// Of how many flows; 0 where that is no part of it.
    pub flows: usize,
    /// Of which of several that were measured beside each other.
    pub variant: String,
    /// What it is.
    pub name: &'static str,
    /// What it is in.
    pub unit: &'static str,
    /// Ordered.
    pub values: Vec<f64>,
}

impl Figure {
    /// From the runs' values, of which there is one at least.
    pub fn new(case: &'static str, flows: usize, name: &'static str, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { case, flows, variant: String::new(), name, unit, values }
    }

    /// Of which of several that were measured beside each other: who forwarded, what size.
    pub fn of(self, variant: impl Into<String>) -> Self {
        Self { variant: variant.into(), ..self }
    }

    /// Of the least run.
    pub fn min(&self) -> f64 {
        self.values[0]
    }

    /// Of the run in the middle.
    pub fn median(&self) -> f64 {
        self.values[self.values.len() / 2]
    }

    /// Of the largest run.
    pub fn max(&self) -> f64 {
        self.values[self.values.len() - 1]
    }

    /// Prints it: as a line of JSON that names the machine, if there is one, else of a table.
    pub fn print(&self, machine: Option<&Machine>) {
        let Figure { case, flows, variant, name, unit, values } = self;
        let (min, median, max) = (self.min(), self.median(), self.max());
        if let Some(Machine { machine, kernel, pages, commit }) = machine {
            let mut line = serde_json::json!({
                "case": case, "flows": flows, "name": name, "value": median, "unit": unit,
                "min": min, "max": max, "runs": values.len(),
                "machine": machine, "kernel": kernel, "pages": pages, "commit": commit,
            });
            if !variant.is_empty() {
                line["variant"] = variant.as_str().into();
            }
            println!("{line}");
        } else {
            println!("{case:<8} {flows:>10} {variant:<14} {name:<26} {min:>10.2} {median:>10.2} {max:>10.2} {unit}");
        }
    }
}

/// Prints the table's head.
pub fn print_head(machine: &Machine) {
    println!("{}", machine.line());
    println!(
        "{:<8} {:>10} {:<14} {:<26} {:>10} {:>10} {:>10} unit",
        "case", "flows", "variant", "name", "min", "median", "max"
    );
}
