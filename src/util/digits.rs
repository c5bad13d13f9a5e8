//! Numbers as digits, in bytes. `core::fmt` takes several times as long, and a record has some twenty numbers.

/// Digits of the largest `u64`.
const MOST_DIGITS: usize = 20;

/// Appends the number in decimal digits.
pub(crate) fn push_decimal(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; MOST_DIGITS];
    let mut begin = MOST_DIGITS;
    loop {
        begin -= 1;
        digits[begin] = last_digit(number);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[begin..]);
}

/// Returns the last decimal digit of the number.
pub(crate) fn last_digit(number: u64) -> u8 {
    b'0' + (number % 10) as u8
}

/// Returns the first so many hexadecimal digits of the bytes.
pub(crate) fn hex<const DIGITS: usize>(bytes: &[u8]) -> [u8; DIGITS] {
    let mut digits = [b'0'; DIGITS];
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[byte >> 4, byte & 15].map(hex_digit));
    }
    digits
}

fn hex_digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_the_standard_library_writes() {
        // Of each length, with all digits in all places.
        let numbers = (0..64).flat_map(|shift| {
            let long = [
                u64::MAX,
                12_345_678_901_234_567_890,
                9_876_543_210_987_654_321,
            ];
            long.map(|number| number >> shift)
        });
        for number in numbers.chain([0, 10_u64.pow(19), 10_u64.pow(19) - 1]) {
            let mut text = b"-".to_vec();
            push_decimal(&mut text, number);
            text.extend(hex::<16>(&number.to_be_bytes()));
            assert_eq!(text, format!("-{number}{number:016x}").into_bytes());
        }
    }
}
