"""Reading imzML: speed as a ratio to pyimzML and other readers, and memory, measured in one run.

asv run --config benchmarks/asv.conf.json --python=same --quick      # small files
python benchmarks/speed/imzml.py                                     # 100,000 and 40,000 pixels; needs 4 GB of disk
python benchmarks/speed/imzml.py --imzy PYTHON --thyra PYTHON        # with environments that have these packages
python benchmarks/speed/imzml.py --only scale --processed 100000 20 --scale 10000 100000 1000000    # memory against pixels

Wall time; processor time of all threads in brackets, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import uuid
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

N_WINDOWS, PPM = 1000, float(os.environ.get("PPM", "5"))  # the environment reaches the processes of tasks, too

_HEAD = """<?xml version="1.0" encoding="ISO-8859-1"?>
<mzML xmlns="http://psi.hupo.org/ms/mzml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" version="1.1">
  <cvList count="1"><cv uri="x" fullName="Imaging MS Ontology" id="IMS" version="1"/></cvList>
  <fileDescription><fileContent>
    <cvParam cvRef="MS" accession="MS:1000579" name="MS1 spectrum" value=""/>
    <cvParam cvRef="MS" accession="MS:1000127" name="centroid spectrum" value=""/>
    <cvParam cvRef="IMS" accession="IMS:{mode_code}" name="{mode}" value=""/>
    <cvParam cvRef="IMS" accession="IMS:1000080" name="universally unique identifier" value="{uuid}"/>
  </fileContent></fileDescription>
  <referenceableParamGroupList count="4">
    <referenceableParamGroup id="mzArray">
      <cvParam cvRef="MS" accession="MS:1000576" name="no compression" value=""/>
      <cvParam cvRef="MS" accession="MS:1000514" name="m/z array" unitCvRef="MS" unitAccession="MS:1000040" unitName="m/z"/>
      <cvParam cvRef="MS" accession="MS:1000523" name="64-bit float" value=""/>
      <cvParam cvRef="IMS" accession="IMS:1000101" name="external data" value="true"/>
    </referenceableParamGroup>
    <referenceableParamGroup id="intensityArray">
      <cvParam cvRef="MS" accession="MS:1000521" name="32-bit float" value=""/>
      <cvParam cvRef="MS" accession="MS:1000515" name="intensity array"/>
      <cvParam cvRef="MS" accession="MS:1000576" name="no compression" value=""/>
      <cvParam cvRef="IMS" accession="IMS:1000101" name="external data" value="true"/>
    </referenceableParamGroup>
    <referenceableParamGroup id="scan1"><cvParam cvRef="MS" accession="MS:1000093" name="increasing m/z scan"/></referenceableParamGroup>
    <referenceableParamGroup id="spectrum1">
      <cvParam cvRef="MS" accession="MS:1000579" name="MS1 spectrum" value=""/>
      <cvParam cvRef="MS" accession="MS:1000127" name="centroid spectrum" value=""/>
      <cvParam cvRef="MS" accession="MS:1000130" name="positive scan" value=""/>
    </referenceableParamGroup>
  </referenceableParamGroupList>
  <softwareList count="1"><software id="benchmark" version="1"/></softwareList>
  <scanSettingsList count="1"><scanSettings id="scanSettings1">
    <cvParam cvRef="IMS" accession="IMS:1000042" name="max count of pixels x" value="{n_x}"/>
    <cvParam cvRef="IMS" accession="IMS:1000043" name="max count of pixels y" value="{n_y}"/>
    <cvParam cvRef="IMS" accession="IMS:1000046" name="pixel size x" value="50" unitCvRef="UO" unitAccession="UO:0000017"/>
    <cvParam cvRef="IMS" accession="IMS:1000047" name="pixel size y" value="50" unitCvRef="UO" unitAccession="UO:0000017"/>
  </scanSettings></scanSettingsList>
  <instrumentConfigurationList count="1"><instrumentConfiguration id="IC1"/></instrumentConfigurationList>
  <dataProcessingList count="1"><dataProcessing id="d"><processingMethod order="0" softwareRef="benchmark"/></dataProcessing></dataProcessingList>
  <run defaultInstrumentConfigurationRef="IC1" id="run">
    <spectrumList count="{count}" defaultDataProcessingRef="d">
"""
# the lines that pyimzML's writer gives a spectrum
_SPECTRUM = """      <spectrum defaultArrayLength="0" id="spectrum={i}" index="{i}">
        <referenceableParamGroupRef ref="spectrum1"/>
        <cvParam cvRef="MS" accession="MS:1000528" name="lowest observed m/z" value="100.123" unitCvRef="MS" unitAccession="MS:1000040" unitName="m/z"/>
        <cvParam cvRef="MS" accession="MS:1000527" name="highest observed m/z" value="999.987" unitCvRef="MS" unitAccession="MS:1000040" unitName="m/z"/>
        <cvParam cvRef="MS" accession="MS:1000504" name="base peak m/z" value="426.1234" unitCvRef="MS" unitAccession="MS:1000040" unitName="m/z"/>
        <cvParam cvRef="MS" accession="MS:1000505" name="base peak intensity" value="1000.5" unitCvRef="MS" unitAccession="MS:1000131" unitName="number of counts"/>
        <cvParam cvRef="MS" accession="MS:1000285" name="total ion current" value="123456.7"/>
        <scanList count="1">
          <cvParam accession="MS:1000795" cvRef="MS" name="no combination"/>
          <scan instrumentConfigurationRef="instrumentConfiguration0">
            <referenceableParamGroupRef ref="scan1"/>
            <cvParam accession="IMS:1000050" cvRef="IMS" name="position x" value="{x}"/>
            <cvParam accession="IMS:1000051" cvRef="IMS" name="position y" value="{y}"/>
          </scan>
        </scanList>
        <binaryDataArrayList count="2">
          <binaryDataArray encodedLength="0">
            <referenceableParamGroupRef ref="mzArray"/>
            <cvParam accession="IMS:1000103" cvRef="IMS" name="external array length" value="{n}"/>
            <cvParam accession="IMS:1000104" cvRef="IMS" name="external encoded length" value="{mz_bytes}"/>
            <cvParam accession="IMS:1000102" cvRef="IMS" name="external offset" value="{mz_at}"/>
            <binary/>
          </binaryDataArray>
          <binaryDataArray encodedLength="0">
            <referenceableParamGroupRef ref="intensityArray"/>
            <cvParam accession="IMS:1000103" cvRef="IMS" name="external array length" value="{n}"/>
            <cvParam accession="IMS:1000104" cvRef="IMS" name="external encoded length" value="{bytes}"/>
            <cvParam accession="IMS:1000102" cvRef="IMS" name="external offset" value="{at}"/>
            <binary/>
          </binaryDataArray>
        </binaryDataArrayList>
      </spectrum>
"""


def write_file(path: Path, n_pixels: int, n_peaks: int, *, continuous: bool) -> Path:
    """A section of simulated spectra: processed ones share 2,000 ions measured 2 ppm off; n_peaks are in each."""
    rng = np.random.default_rng(0)
    n_x = int(np.sqrt(n_pixels))
    ions = np.sort(rng.uniform(100, 1000, 2000))
    axis = np.linspace(100, 1000, n_peaks)
    name = uuid.uuid4()
    mode = "continuous" if continuous else "processed"
    with path.with_suffix(".ibd").open("wb") as ibd, path.open("w") as xml:
        ibd.write(name.bytes)
        xml.write(
            _HEAD.format(
                mode=mode, mode_code=1000030 if continuous else 1000031, uuid=name, n_x=n_x, n_y=-(-n_pixels // n_x), count=n_pixels
            )
        )  # fmt: skip
        at = 16
        if continuous:
            at += ibd.write(axis.tobytes())
        for i in range(n_pixels):
            mz_at = 16
            if not continuous:
                n = int(n_peaks + rng.integers(-n_peaks // 10, n_peaks // 10))
                mz = np.sort(rng.choice(ions, n, replace=False) * (1 + rng.normal(0, 2e-6, n)))
                mz_at, at = at, at + ibd.write(mz.tobytes())
            else:
                n = n_peaks
            intensity = rng.exponential(10, n).astype(np.float32)
            here, at = at, at + ibd.write(intensity.tobytes())
            xml.write(
                _SPECTRUM.format(
                    i=i + 1, x=i % n_x + 1, y=i // n_x + 1, n=n, mz_bytes=8 * n, mz_at=mz_at, bytes=4 * n, at=here
                )
            )
        xml.write("    </spectrumList>\n  </run>\n</mzML>\n")
    return path


def targets() -> np.ndarray:
    """1,000 of the ions."""
    return np.sort(np.random.default_rng(0).uniform(100, 1000, 2000))[::2][:N_WINDOWS]


def timed(function, *args, **options):
    """Wall and processor seconds, and the result."""
    wall, cpu = perf_counter(), process_time()
    result = function(*args, **options)
    return perf_counter() - wall, process_time() - cpu, result


class AnonymousPeak:
    """Largest anonymous memory of this process while it is entered, in MB; pages of mapped files do not count."""

    def __enter__(self):
        self.peak, self._stop = self._now(), threading.Event()
        self.before = self.peak
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) / 1024

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, self._now())


def pyimzml_offsets(path):
    from pyimzml.ImzMLParser import ImzMLParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImzMLParser(str(path))


def pyimzml_windows(path, mz):
    """Its parser and its spectra, each searched by NumPy for all windows."""
    parser = pyimzml_offsets(path)
    low, high = mz * (1 - PPM * 1e-6), mz * (1 + PPM * 1e-6)
    out = np.zeros((len(parser.coordinates), len(mz)), np.float32)
    for i in range(len(out)):
        x, y = parser.getspectrum(i)
        start, stop = np.searchsorted(x, low), np.searchsorted(x, high, side="right")
        hit = np.flatnonzero(stop > start)
        bounds = np.column_stack([start[hit], stop[hit]]).ravel()
        out[i, hit] = np.add.reduceat(np.append(y, 0), bounds)[::2] if hit.size else 0
    parser.m.close()
    return out


def stmsi_offsets(path, *, cached: bool = False):
    from stmsi._imzml import index as index

    index._CACHE_FROM = 1_000_000 if cached else 2**62
    ibd = path.with_suffix(".ibd")
    return index.read_index(path, ibd.stat().st_size, ibd.name)


def stmsi_windows(path, mz, **options):
    import stmsi

    return stmsi.io.read_imzml(path, mz=mz, tolerance=PPM, show_progress_bar=False, **options)


def stmsi_matrix(path, mz):
    """Offsets and windows without the section around them, as the peers give them."""
    from stmsi._imzml import extract as e
    from stmsi._imzml.file import ImzmlFile

    with ImzmlFile(path) as file:
        chosen = np.arange(len(file.xyz))
        options = e.Options(PPM, "ppm", "sum", 0.0, False)
        plan = e.plan_targets(file, chosen, mz, options)
        rows = e.SparseRows(len(chosen), plan.n_columns)
        e.extract(file, chosen, plan, options, rows)
        return rows.matrix()


_IMZY = """
import sys, time, json, numpy as np
from imzy import get_reader
mz = np.load(sys.argv[2])
out = []
for _ in range(2):
    wall, cpu = time.perf_counter(), time.process_time()
    table = get_reader(sys.argv[1]).to_table(mz, ppm={ppm}, fill_value=0, silent=True)
    out.append([time.perf_counter() - wall, time.process_time() - cpu])
print(json.dumps([*out, float(table.sum(dtype=float))]))
"""


def child(task: str, *args: str, env: dict[str, str] | None = None):
    """Run a task of this file in a process of its own."""
    command = [sys.executable, __file__, "--task", task, *args]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **(env or {})})
    return json.loads(done.stdout.splitlines()[-1])


def task(name: str, *args: str) -> None:
    """What runs in a process of its own; prints JSON."""
    path = Path(args[0])
    # what is imported in front of `timed` is not counted
    if name == "matrix":  # fresh: the first call in this process; warm: the second
        mz = np.load(args[1])
        import stmsi
        from stmsi.io import read_imzml

        stmsi.settings.cache_dir = Path(args[2])
        with AnonymousPeak() as first:
            *fresh, X = timed(stmsi_matrix, path, mz)
        total = float(X.sum(dtype=float))
        del X
        *warm, _ = timed(stmsi_matrix, path, mz)
        print(json.dumps([fresh, warm, total, first.before, first.peak]))
    elif name == "section":
        mz = np.load(args[1])
        import stmsi

        stmsi.settings.cache_dir = Path(args[2])
        out = {"out": args[3]} if len(args) > 3 else {}
        warnings.simplefilter("ignore")
        import spatialdata

        from stmsi.io import read_imzml  # noqa: F401

        with AnonymousPeak() as peak:
            *time, sdata = timed(stmsi_windows, path, mz, **out)
        del sdata
        warm = timed(stmsi_windows, path, mz)[:2] if not out else None
        print(json.dumps([time, peak.before, peak.peak, warm]))
    elif name == "all":  # every bin of a continuous file, or every target, into a store
        import stmsi

        stmsi.settings.cache_dir = Path(args[1])
        warnings.simplefilter("ignore")
        import spatialdata  # noqa: F401

        with AnonymousPeak() as peak:
            *time, _ = timed(stmsi.io.read_imzml, path, out=args[2], show_progress_bar=False)
        print(json.dumps([time, peak.before, peak.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


class Imzml:
    """Small files: 2,000 pixels of 700 peaks, and of 2,000 bins."""

    timeout = 300
    sizes = ((2000, 700, False), (2000, 2000, True))

    def setup(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.files = [
            write_file(Path(self.folder.name) / f"{i}.imzML", n, m, continuous=c)
            for i, (n, m, c) in enumerate(self.sizes)
        ]
        for file in self.files:
            stmsi_matrix(file, targets())

    def teardown(self) -> None:
        self.folder.cleanup()

    def time_read_processed(self) -> None:
        stmsi_windows(self.files[0], targets())

    def time_read_continuous(self) -> None:
        stmsi_windows(self.files[1], targets())

    def track_offsets_over_pyimzml(self) -> float:
        return timed(pyimzml_offsets, self.files[0])[0] / timed(stmsi_offsets, self.files[0])[0]

    def track_processed_over_pyimzml(self) -> float:
        return timed(pyimzml_windows, self.files[0], targets())[0] / timed(stmsi_matrix, self.files[0], targets())[0]

    def track_continuous_over_pyimzml(self) -> float:
        return timed(pyimzml_windows, self.files[1], targets())[0] / timed(stmsi_matrix, self.files[1], targets())[0]


def show(name: str, *values: object) -> None:
    print(f"{name:<58}", *values, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processed", type=int, nargs=2, default=(100_000, 700), metavar=("PIXELS", "PEAKS"))
    parser.add_argument("--continuous", type=int, nargs=2, default=(40_000, 5000), metavar=("PIXELS", "BINS"))
    parser.add_argument(
        "--scale", type=int, nargs="+", metavar="PIXELS", help="sizes for `--only scale`; peaks as for --processed"
    )
    parser.add_argument("--folder", type=Path, help="where the files are kept for another run")
    parser.add_argument("--imzy", help="a Python that has imzy")
    parser.add_argument("--thyra", help="a thyra program")
    parser.add_argument("--only", nargs="*", default=["offsets", "windows", "numpy", "store", "scale"])
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(*options.task)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary), Path(temporary))


def run(options, folder: Path, scratch: Path) -> None:
    folder.mkdir(exist_ok=True)
    np.save(scratch / "mz.npy", targets())
    mz, cache = str(scratch / "mz.npy"), str(scratch / "cache")
    if options.only == ["scale"]:
        scale(options, folder, scratch, mz, cache)
        return
    for mode, (pixels, peaks) in (("processed", options.processed), ("continuous", options.continuous)):
        path = folder / f"{mode}_{pixels}_{peaks}.imzML"
        if not path.exists():
            write_file(path, pixels, peaks, continuous=mode == "continuous")
        print(
            f"\n{mode}, {pixels} pixels x {peaks}: {path.stat().st_size / 1e6:.0f} + {path.with_suffix('.ibd').stat().st_size / 1e6:.0f} MB"
        )
        peer = None
        if "offsets" in options.only:
            stmsi_offsets(path)
            ours = [timed(stmsi_offsets, path)[:2] for _ in range(3)]
            wall, cpu = min(ours)
            peer = timed(pyimzml_offsets, path)[:2]
            show(
                "offsets: stmsi, pyimzML, ratio",
                f"{wall:.2f} s ({cpu:.2f})  {peer[0]:.1f} s ({peer[1]:.1f})  {peer[0] / wall:.0f}x ({peer[1] / cpu:.0f}x)",
            )
        if "windows" in options.only:
            fresh, warm, total, before, top = child("matrix", str(path), mz, cache)
            show(
                f"{N_WINDOWS} windows: stmsi first call, second call",
                f"{fresh[0]:.2f} s ({fresh[1]:.2f})  {warm[0]:.2f} s ({warm[1]:.2f})",
            )
            show("  anonymous memory: before, peak", f"{before:.0f} MB  {top:.0f} MB")
            theirs = timed(pyimzml_windows, path, targets())
            show(
                "  pyimzML; ratio of the first, the second call",
                f"{theirs[0]:.1f} s ({theirs[1]:.1f})  {theirs[0] / fresh[0]:.1f}x (cpu {theirs[1] / fresh[1]:.1f}x)  {theirs[0] / warm[0]:.1f}x (cpu {theirs[1] / warm[1]:.1f}x)",
            )
            show("  sums agree to", f"{abs(theirs[2].sum(dtype=float) / total - 1):.1e}")
            pyimzml_time = theirs[:2]
            del theirs
            if options.imzy:
                script = scratch / "imzy_task.py"
                script.write_text(_IMZY.format(ppm=PPM))
                done = subprocess.run(
                    [options.imzy, str(script), str(path), mz], check=True, capture_output=True, text=True
                )
                first, second, their_total = json.loads(done.stdout.splitlines()[-1])
                show(
                    "  imzy first, second call; ratios",
                    f"{first[0]:.1f} s  {second[0]:.1f} s ({second[1]:.1f})  {first[0] / fresh[0]:.0f}x  {second[0] / warm[0]:.0f}x (cpu {second[1] / warm[1]:.0f}x)",
                )
                show("  sums agree to", f"{abs(their_total / total - 1):.1e}")
                path.with_suffix(".icache").unlink(missing_ok=True)
            fresh, before, top, warm = child("section", str(path), mz, str(scratch / f"cache_section_{mode}"))
            show(
                "  read_imzml, a whole SpatialData: first, second call",
                f"{fresh[0]:.2f} s ({fresh[1]:.2f})  {warm[0]:.2f} s ({warm[1]:.2f}); {before:.0f} -> {top:.0f} MB",
            )
            show(
                "  ratios to pyimzML",
                f"{pyimzml_time[0] / fresh[0]:.1f}x (cpu {pyimzml_time[1] / fresh[1]:.1f}x)  {pyimzml_time[0] / warm[0]:.1f}x (cpu {pyimzml_time[1] / warm[1]:.1f}x)",
            )
            if "numpy" in options.only:
                fresh, warm, *_ = child("matrix", str(path), mz, str(scratch / "cache2"), env={"STMSI_COMPILED": "0"})
                show(
                    "  without numba: first, second call; ratios to pyimzML",
                    f"{fresh[0]:.1f} s ({fresh[1]:.1f})  {warm[0]:.1f} s  {pyimzml_time[0] / fresh[0]:.1f}x  {pyimzml_time[0] / warm[0]:.1f}x (cpu {pyimzml_time[1] / fresh[1]:.1f}x)",
                )
        if "store" in options.only:
            out = scratch / f"{mode}.zarr"
            time, before, top, _ = child("section", str(path), mz, cache, str(out))
            files = sum(len(names) for _, _, names in os.walk(out))
            show(
                f"{N_WINDOWS} windows into a store",
                f"{time[0]:.2f} s ({time[1]:.2f}); {before:.0f} -> {top:.0f} MB; {files} files",
            )
        if "store" in options.only and mode == "continuous":
            ours, before, top, _ = child("all", str(path), cache, str(scratch / "all.zarr"))
            files = sum(len(names) for _, _, names in os.walk(scratch / "all.zarr"))
            show(
                "every bin into a store",
                f"{ours[0]:.1f} s ({ours[1]:.1f}); {before:.0f} -> {top:.0f} MB; {files} files",
            )
            if options.thyra:
                command = [options.thyra, "--resample-bins", str(peaks), str(path), str(scratch / "thyra.zarr")]
                usage = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = perf_counter()
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
                files = sum(len(names) for _, _, names in os.walk(scratch / "thyra.zarr"))
                show(
                    f"thyra, {peaks} bins (exit {done.returncode})",
                    f"{wall:.1f} s ({cpu:.1f}); {files} files; {wall / ours[0]:.1f}x (cpu {cpu / ours[1]:.1f}x)",
                )
                if done.returncode:
                    print(done.stdout[-2000:], done.stderr[-2000:])
    if "scale" in options.only:
        scale(options, folder, scratch, mz, cache)


def scale(options, folder: Path, scratch: Path, mz: str, cache: str) -> None:
    """Memory of `read_imzml(out=)` against the number of pixels: of the first call, which reads the XML, and of the second."""
    pixel_numbers = options.scale or (options.processed[0] // 10, options.processed[0])
    peaks = options.processed[1]
    last: dict[str, tuple[int, float]] = {}
    for pixels in pixel_numbers:
        path = folder / f"processed_{pixels}_{peaks}.imzML"
        if not path.exists():
            write_file(path, pixels, peaks, continuous=False)
        for call in ("first", "second"):
            out = scratch / f"scale_{pixels}_{call}.zarr"
            time, before, top, _ = child("section", str(path), mz, f"{cache}_{pixels}", str(out))
            files = sum(len(names) for _, _, names in os.walk(out))
            told = f"{time[0]:.2f} s ({time[1]:.2f}); {before:.0f} -> {top:.0f} MB; {files} files"
            if call in last:
                fewer, less = last[call]
                told += f"; {top / less - 1:+.0%}, {(top - less) * 1024 / (pixels - fewer):.2f} kB a pixel"
            last[call] = pixels, top
            show(f"{pixels} pixels x {peaks} into a store, {call} call", told)


if __name__ == "__main__":
    main()
