//! The API's rules for names: RFC 1035 and RFC 1123 labels, RFC 1123 subdomains, IANA service names (RFC 6335).

fn lower_alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// An RFC 1123 label.
pub(super) fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.chars().all(|c| lower_alphanumeric(c) || c == '-')
        && name.starts_with(lower_alphanumeric)
        && name.ends_with(lower_alphanumeric)
}

/// An RFC 1035 label: one of RFC 1123 that begins with a letter.
pub(super) fn is_letter_label(name: &str) -> bool {
    is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase())
}

/// An RFC 1123 subdomain: labels with dots between.
pub(super) fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A port's name as pods may give it (RFC 6335 section 5.1, lower case).
pub(super) fn is_port_name(name: &str) -> bool {
    is_label(name) && name.len() <= 15 && name.contains(|c: char| c.is_ascii_lowercase()) && !name.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_api() {
        let long = "a".repeat(64);
        let cases = [
            ("web", true, true, true),
            ("web-1", true, true, true),
            ("1web", true, false, true),
            ("nginx-externalName", false, false, false),
            ("-web", false, false, false),
            ("web-", false, false, false),
            ("web.x", false, false, true),
            ("web..x", false, false, false),
            ("", false, false, false),
            (&long, false, false, false),
        ];
        for (name, label, letter, subdomain) in cases {
            assert_eq!(
                (is_label(name), is_letter_label(name), is_subdomain(name)),
                (label, letter, subdomain),
                "{name}"
            );
        }
        assert!(is_port_name("http-alt") && !is_port_name("http--alt") && !is_port_name("80"));
    }
}
