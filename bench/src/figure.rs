//! What was measured: printed as a table for people, or a line of JSON each.

/// A figure of several runs.
pub struct Figure {
    case: &'static str,
    flows: usize,
    variant: String,
    name: &'static str,
    unit: &'static str,
    /// Ordered.
    values: Vec<f64>,
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

    /// Prints it.
    pub fn print(&self, json: bool) {
        let Figure { case, flows, variant, name, unit, values } = self;
        let (min, median, max) = (values[0], values[values.len() / 2], values[values.len() - 1]);
        if json {
            let mut line = serde_json::json!({
                "case": case, "flows": flows, "name": name, "value": median, "unit": unit,
                "min": min, "max": max, "runs": values.len(),
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
pub fn print_head() {
    println!(
        "{:<8} {:>10} {:<14} {:<26} {:>10} {:>10} {:>10} unit",
        "case", "flows", "variant", "name", "min", "median", "max"
    );
}
