"""Values that commands and functions share, most of them defaults. It imports nothing, so that parsers are quick."""

# Archives and splits.
KENYA_RECORD = 10943500
ZENODO_API_URL = "https://zenodo.org/api/records"
MIN_ANNOTATIONS = 10
TEST_SIZE = VALIDATION_SIZE = 0.2
SPLIT_SEED = 42
SPLIT_SEARCH_S = 60.0
# Of recordings in folders of species, signal is so much louder than the noise.
SIGNAL_DB = 15.0
SYNTHETIC_RECORDINGS, SYNTHETIC_DURATION_S, SYNTHETIC_SPECIES = 12, 60.0, 8

# Training.
BACKBONE = "convnext_tiny.in12k_ft_in1k"
CLIPS_PER_BATCH = 64
EPOCHS = 30.0

# Inference and the web page.
TABLE_FORMATS = ("raven", "audacity", "csv", "parquet", "json", "kaleidoscope")
PLOT_DURATION_S = 60.0
SEARCH_TOP_K = 20
DEMO_HOST, DEMO_PORT = "127.0.0.1", 7860
VERIFY_PORT = 7861
MAX_UPLOAD_MB, MAX_HOURS = 400.0, 2.0
