"""Source formats of ingest: one file per format, each giving a lazy cube or label map."""
