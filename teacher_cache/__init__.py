"""Stage one: a frozen CLIP teacher goes once over an image set; what it said is kept in Zarr."""

from teacher_cache.softlabels import TeacherCache, open_cache

__all__ = ["TeacherCache", "open_cache"]
