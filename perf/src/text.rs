//! Results as text.

use comfy_table::Table;

/// A table without lines, under these heads.
#[must_use]
pub fn listing<'a>(heads: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(heads);
    table
}
