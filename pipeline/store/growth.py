"""Room for more rows in a store that is there.

In: the arrays lengthened, then the attributes replaced. Left out: what is written there
(shards.py). An interrupted growth leaves arrays that are longer than the attributes say.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pipeline.durable_files import not_written
from pipeline.locations import storage_errors
from pipeline.store.documents import (
    document_file,
    read_document,
    replace_document,
    write_attributes,
)
from pipeline.store.layout import array_names, array_shape
from storage_schemas.block_features import BlockFeatureSchema
from storage_schemas.errors import StoreError
from storage_schemas.soft_labels import SoftLabelSchema

Schema = TypeVar("Schema", SoftLabelSchema, BlockFeatureSchema)


def grow_store(path: Path, schema: Schema, num_rows: int) -> Schema:
    """Return the schema of a store in which there is room for so many rows; one process at a time.

    Raises:
        StoreError: If the number of rows would shrink, or the store cannot be written.
    """
    if num_rows < schema.num_rows:
        raise StoreError(
            f"{path}: rows only grow: num_rows must be at least {schema.num_rows}, got {num_rows}"
        )
    if num_rows == schema.num_rows:
        return schema
    grown = type(schema).model_validate(
        schema.model_dump()
        | {"num_rows": num_rows, "grown_at": (*schema.grown_at, schema.num_rows)}
    )
    try:
        for name in array_names(schema):
            document = read_document(path, name)
            document["shape"] = list(array_shape(grown, name))
            replace_document(document_file(path, name), document)
        write_attributes(path, grown, read_document(path)["attributes"])
    except storage_errors() as error:
        raise not_written(path, path, error) from error
    return grown
