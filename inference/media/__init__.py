"""Owns media files: looking at them, reading frames, writing segments, joining the result. No torch."""

from inference.media.decode import Frame
from inference.media.images import ImagePixels, read_image, write_image
from inference.media.info import AudioTrack, ColorTags, Kind, MediaInfo, Orientation, SubtitleTrack
from inference.media.mux import MuxReport, mux
from inference.media.probe import probe
from inference.media.reader import FrameReader, read_frames
from inference.media.target import check_target
from inference.media.writer import SEGMENT_SUFFIX, EncodeParameters, SegmentWriter

__all__ = [
    "SEGMENT_SUFFIX",
    "AudioTrack",
    "ColorTags",
    "EncodeParameters",
    "Frame",
    "FrameReader",
    "ImagePixels",
    "Kind",
    "MediaInfo",
    "MuxReport",
    "Orientation",
    "SegmentWriter",
    "SubtitleTrack",
    "check_target",
    "mux",
    "probe",
    "read_frames",
    "read_image",
    "write_image",
]
