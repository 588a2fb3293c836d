//! [`columns!`]: a struct, its polars schema and its documentation, made from one list of columns.

use polars::prelude::*;

/// A type that a column may hold.
pub(crate) trait Cell: Clone + Sized {
    const DTYPE: DataType;

    fn to_column(name: &str, values: Vec<Self>) -> Column;

    fn from_column(column: &Column) -> PolarsResult<Vec<Self>>;
}

/// Implements [`Cell`] for a type that polars stores, with and without nulls.
macro_rules! cell {
    ($ty:ty, $dtype:ident, $accessor:ident) => {
        impl Cell for Option<$ty> {
            const DTYPE: DataType = DataType::$dtype;

            fn to_column(name: &str, values: Vec<Self>) -> Column {
                Column::new(name.into(), values)
            }

            fn from_column(column: &Column) -> PolarsResult<Vec<Self>> {
                Ok(column.$accessor()?.iter().map(|value| value.map(<$ty>::from)).collect())
            }
        }

        impl Cell for $ty {
            const DTYPE: DataType = DataType::$dtype;

            fn to_column(name: &str, values: Vec<Self>) -> Column {
                Column::new(name.into(), values)
            }

            fn from_column(column: &Column) -> PolarsResult<Vec<Self>> {
                let present = |value: Option<$ty>| value.ok_or_else(|| polars_err!(NoData: "column {} holds a null", column.name()));
                <Option<$ty>>::from_column(column)?.into_iter().map(present).collect()
            }
        }
    };
}

cell!(String, String, str);
cell!(f64, Float64, f64);
cell!(u64, UInt64, u64);
cell!(bool, Boolean, bool);

/// Makes a row, its schema and its conversions from one list of columns.
macro_rules! columns {
    ($(#[doc = $about:literal])+ $Row:ident { $($(#[doc = $doc:literal])+ $name:ident: $ty:ty,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq)]
        pub struct $Row {
            $($(#[doc = $doc])+ pub $name: $ty,)+
        }

        impl $Row {
            /// Column names and types, in order.
            pub fn schema() -> polars::prelude::Schema {
                polars::prelude::Schema::from_iter([$((stringify!($name).into(), <$ty as $crate::report::columns::Cell>::DTYPE)),+])
            }

            /// What each column means, in order: name and explanation.
            pub const COLUMNS: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+))),+];

            /// The frame of `rows`, in their order.
            ///
            /// # Errors
            /// Only if polars refuses to build a frame.
            pub fn to_frame(rows: &[Self]) -> PolarsResult<DataFrame> {
                DataFrame::new(rows.len(), vec![
                    $(<$ty as $crate::report::columns::Cell>::to_column(stringify!($name), rows.iter().map(|row| row.$name.clone()).collect())),+
                ])
            }

            /// The rows of a frame, e.g. of one read from `records.parquet`.
            ///
            /// # Errors
            /// A column that is missing, of another type, or null where it must not be.
            pub fn from_frame(frame: &DataFrame) -> PolarsResult<Vec<Self>> {
                $(let mut $name = <$ty as $crate::report::columns::Cell>::from_column(frame.column(stringify!($name))?)?.into_iter();)+
                let mut rows = Vec::with_capacity(frame.height());
                while let ($(Some($name),)+) = ($($name.next(),)+) {
                    rows.push(Self { $($name),+ });
                }
                Ok(rows)
            }
        }
    };
}

pub(crate) use columns;
