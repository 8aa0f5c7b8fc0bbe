//! The present moment, as Python's `strftime` writes it.

use chrono::{
    DateTime, Local, TimeZone,
    format::{Item, Numeric, StrftimeItems},
};
use minijinja::{Error, ErrorKind};

/// The local time in a format of `strftime`: what Transformers gives templates as `strftime_now`.
///
/// # Errors
/// If the format has a code that is unknown, or one that Python writes otherwise.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    strftime(&Local::now(), format)
}

fn strftime<Z: TimeZone<Offset: std::fmt::Display>>(time: &DateTime<Z>, format: &str) -> Result<String, Error> {
    let items: Vec<_> = StrftimeItems::new(format).collect();
    // `%f` has six digits in Python and nine here.
    if items.iter().any(|item| matches!(item, Item::Error | Item::Numeric(Numeric::Nanosecond, _))) {
        let problem = format!("strftime_now does not support the format {}", peft_core::error::quoted(format));
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    Ok(time.format_with_items(items.iter()).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let written = |seconds, format| strftime(&DateTime::from_timestamp(seconds, 0).unwrap(), format);
        assert_eq!(written(0, "%d %b %Y %A").unwrap(), "01 Jan 1970 Thursday");
        assert_eq!(written(951_782_400, "%Y-%m-%d %a").unwrap(), "2000-02-29 Tue");
        assert_eq!(written(1_735_689_599, "%d %B %y %H:%M:%S%%").unwrap(), "31 December 24 23:59:59%");
        assert_eq!(written(951_782_400, "%j %-d %-m %e %I %p %F %T").unwrap(), "060 29 2 29 12 AM 2000-02-29 00:00:00");
        assert_eq!(written(1_735_689_599, "%j %I %-I %p").unwrap(), "366 11 11 PM");
        for unknown in ["%Q", "%f", "%"] {
            assert!(written(0, unknown).unwrap_err().to_string().contains(unknown));
        }
    }
}
