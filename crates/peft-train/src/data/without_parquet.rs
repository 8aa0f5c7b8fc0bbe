//! Stands for the reader of Parquet files in builds without the feature `parquet`.

use std::path::Path;

use peft_core::{Error, Result, data::example::Row};

pub(super) fn parse(path: &Path) -> Result<Vec<Row>> {
    let problem =
        "this program was built without the feature `parquet`; build it with the feature, or convert the file \
                   to JSON Lines"
            .to_owned();
    Err(Error::File { path: path.to_owned(), problem })
}
