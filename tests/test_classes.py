"""Class tables and their CF form."""

from pipeline.classes import ClassTable, default_colors, from_attributes, table_of, to_attributes

CLASSES = ClassTable((3, 300), ("Dry grass", "Road"), ("#00ff00", "#808080"))


def test_class_table_in_cf_form() -> None:
    attributes = to_attributes(CLASSES)
    assert attributes["flag_values"] == [3, 300]
    assert attributes["flag_meanings"] == "Dry_grass Road"
    assert attributes["flag_colors"] == "#00ff00 #808080"
    assert from_attributes(attributes, "labels") == CLASSES
    del attributes["class_names"]
    named = from_attributes({**attributes, "flag_values": [300, 0]}, "labels")
    assert named == ClassTable((300,), ("Dry_grass",), ("#00ff00",))
    assert len(set(default_colors(20))) == 20


def test_a_class_without_a_name_gets_one() -> None:
    table = table_of([(1, "trees", None), (2, " ", None), (3, "water", None)])
    assert table.names == ("trees", "class 2", "water")
    assert from_attributes(to_attributes(table), "labels") == table
