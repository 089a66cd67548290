//! What was measured: printed as a table for people, or a line of JSON each.

/// A figure of several runs.
pub struct Figure {
    case: &'static str,
    flows: usize,
    name: &'static str,
    unit: &'static str,
    /// Ordered.
    values: Vec<f64>,
}

impl Figure {
    /// From the runs' values, of which there is one at least.
    pub fn new(case: &'static str, flows: usize, name: &'static str, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self { case, flows, name, unit, values }
    }

    /// Prints it.
    pub fn print(&self, json: bool) {
        let Figure { case, flows, name, unit, values } = self;
        let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        if json {
            let line = serde_json::json!({
                "case": case, "flows": flows, "name": name, "value": median, "unit": unit,
                "min": min, "max": max, "runs": values.len(),
            });
            println!("{line}");
        } else {
            println!("{case:<8} {flows:>10} {name:<22} {min:>8.2} {median:>8.2} {max:>8.2} {unit}");
        }
    }
}

/// Prints the table's head.
pub fn print_head() {
    println!("{:<8} {:>10} {:<22} {:>8} {:>8} {:>8} unit", "case", "flows", "name", "min", "median", "max");
}
