//! Resource quantities, as far as `resourceFieldRef` needs them.

/// `quantity / divisor`, rounded up, as a kubelet puts it into an environment variable; none if either cannot be read.
pub(crate) fn divided(quantity: &str, divisor: &str) -> Option<String> {
    let (quantity, divisor) = (thousandths(quantity)?, thousandths(divisor)?);
    if divisor <= 0 || quantity < 0 {
        return None;
    }
    Some(((quantity + divisor - 1) / divisor).to_string())
}

/// A quantity (`500m`, `1.5`, `4Gi`) in thousandths, rounded down.
fn thousandths(quantity: &str) -> Option<i128> {
    let digits = quantity
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(digits);
    let scale = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000_i128 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let decimals = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    Some(digits.checked_mul(scale)? / decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_divided_and_rounded_up() {
        let divided =
            |quantity, divisor| divided(quantity, divisor).unwrap_or_else(|| "unreadable".into());
        assert_eq!(divided("500m", "1"), "1");
        assert_eq!(divided("500m", "1m"), "500");
        assert_eq!(divided("1.5", "1m"), "1500");
        assert_eq!(divided("4Gi", "1"), "4294967296");
        assert_eq!(divided("4Gi", "1Mi"), "4096");
        assert_eq!(divided("4Gi", "1G"), "5");
        assert_eq!(divided("much", "1"), "unreadable");
        assert_eq!(divided("1", "0"), "unreadable");
    }
}
