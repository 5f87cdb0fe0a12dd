"""Lipid species by their summed chains: names, exact formulas and the genes of class and chains."""

from __future__ import annotations

from dataclasses import dataclass

ATOMS = ("C", "H", "N", "O", "P", "S")


@dataclass(frozen=True)
class LipidClass:
    """What all species of a class share.

    Parameters
    ----------
    title
        Class in the table.
    base
        Atoms C, H, N, O, P, S beside ``C(c) H(2c - 2d)`` of chains with `c` carbons and `d` double bonds.
    chains
        How many fatty acyls share the carbons; 0: a ceramide backbone of 18 carbons with one double bond, and one acyl.
    genes, transporters
        Genes of the class.
    bigg
        Pools of Human-GEM that stand for the class.
    species
        Carbons and double bonds, as ``"34:1"``.
    synonyms
        Names with ``{}`` for the chains.
    extra
        Genes of species with a hydroxyl more.
    """

    title: str
    base: tuple[int, int, int, int, int, int]
    chains: int
    genes: str
    species: str
    transporters: str = ""
    bigg: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def rows(self, abbreviation: str) -> list[dict[str, str]]:
        """One row per species."""
        return [self._row(abbreviation, chains) for chains in self.species.split()]

    def _row(self, abbreviation: str, text: str) -> dict[str, str]:
        carbon, double = map(int, text.removeprefix("O-").removesuffix(";O3").split(":"))
        ether, hydroxy = text.startswith("O-"), text.endswith(";O3")
        counts = list(self.base)
        counts[0] += carbon
        counts[1] += 2 * carbon - 2 * double + 2 * ether
        counts[3] += hydroxy - ether
        genes = self.genes.split() + list(self.extra if hydroxy else ()) + chain_genes(self.chains, carbon, double)
        names = [] if hydroxy else [s.format(text) for s in self.synonyms]
        if ether and double:
            names.append(f"{abbreviation} P-{carbon}:{double - 1}")
        return {
            "name": f"{abbreviation} {text}",
            "synonyms": ";".join(names),
            "formula": "".join(f"{a}{n if n > 1 else ''}" for a, n in zip(ATOMS, counts, strict=True) if n),
            "class": f"ether {self.title}" if ether else self.title,
            "genes": ";".join(dict.fromkeys(genes)),
            "transporters": self.transporters.replace(" ", ";"),
        }


def chain_genes(chains: int, carbon: int, double: int) -> list[str]:
    """Genes that make the acyls a species most often has.

    SCD makes the monounsaturated ones; linoleate and alpha-linolenate come from food, so that species whose double bonds
    are theirs have none. FADS1 and ACSL4 stand for arachidonate, FADS2 and ACSL6 for docosahexaenoate.
    """
    if chains == 0:
        return _ceramide_synthases(carbon - 18)
    if chains == 1:
        if double == 1:
            return ["SCD"] if carbon <= 18 else ["ELOVL1"]
        if carbon < 20 or double < 3:
            return []
        return {3: ["FADS2", "ELOVL5"], 6: ["FADS2", "ACSL6"]}.get(double, ["FADS1", "ACSL4"])
    if chains == 4:  # cardiolipin: linoleate, but for the species with an odd one out
        return ["SCD"] if double == 7 else []
    first_polyenoic = {2: 4, 3: 5}[chains]
    if double == 0:
        return []
    if double < first_polyenoic:
        only_linoleate = chains == 2 and (carbon, double) in {(34, 2), (35, 2), (36, 4)}
        if chains == 2 and double == 3 and carbon >= 38:
            return ["FADS2", "ELOVL5"]  # 20:3
        return [] if only_linoleate else ["SCD"]
    if chains == 3 and carbon < 56:
        return ["SCD"]
    return ["FADS2", "ACSL6"] if double >= (6 if chains == 2 else 7) else ["FADS1", "ACSL4"]


def _ceramide_synthases(acyl: int) -> list[str]:
    """Ceramide synthases by the length of the acyl (Kihara, Prog. Lipid Res. 2016)."""
    if acyl <= 16:
        return ["CERS5", "CERS6"]
    if acyl <= 18:
        return ["CERS1"]
    if acyl <= 20:
        return ["CERS4"]
    return ["CERS2", "CERS4"] if acyl <= 22 else ["CERS2", "ELOVL1"]


_REMODEL = "LPCAT1 LPCAT2 LPCAT3"
_FLIP = "ATP8A1 ATP11A ATP11C TMEM30A XKR8 ANO6"
_ETHER = "GNPAT AGPS FAR1"

CLASSES: dict[str, tuple[LipidClass, ...]] = {
    "PC": (
        LipidClass(
            "phosphatidylcholine", (8, 16, 1, 8, 1, 0), 2,
            f"CHPT1 CEPT1 PCYT1A PCYT1B PEMT {_REMODEL} PLA2G4A PLD1 PLD2",
            "30:0 30:1 32:0 32:1 32:2 33:1 34:0 34:1 34:2 34:3 34:4 35:1 35:2 36:1 36:2 36:3 36:4 36:5 36:6 38:1 38:2 38:3 "
            "38:4 38:5 38:6 38:7 40:1 40:2 40:4 40:5 40:6 40:7 40:8",
            "ABCB4 PCTP", ("pchol_hs",),
        ),
        LipidClass(
            "phosphatidylcholine", (8, 16, 1, 8, 1, 0), 2, f"{_ETHER} CHPT1 CEPT1 PLA2G6",
            "O-32:0 O-32:1 O-34:0 O-34:1 O-34:2 O-34:3 O-36:1 O-36:2 O-36:3 O-36:4 O-36:5 O-38:4 O-38:5 O-38:6",
            "", ("ak2gchol_hs", "ak2lgchol_hs", "paf_hs", "akgp_hs", "adhap_hs"),
        ),
    ),
    "PE": (
        LipidClass(
            "phosphatidylethanolamine", (5, 10, 1, 8, 1, 0), 2,
            "PCYT2 SELENOI CEPT1 PISD PEMT LPCAT3 MBOAT1 MBOAT2 PLA2G4A",
            "32:1 34:1 34:2 34:3 36:1 36:2 36:3 36:4 36:5 38:1 38:2 38:3 38:4 38:5 38:6 38:7 40:4 40:5 40:6 40:7 40:8",
            "ATP8A1", ("pe_hs",),
        ),
        LipidClass(
            "phosphatidylethanolamine", (5, 10, 1, 8, 1, 0), 2, f"{_ETHER} SELENOI PEDS1 PCYT2 PLA2G6",
            "O-34:2 O-34:3 O-36:2 O-36:3 O-36:4 O-36:5 O-36:6 O-38:4 O-38:5 O-38:6 O-38:7 O-40:4 O-40:5 O-40:6 O-40:7 O-40:8",
            "", ("ak2gpe_hs", "dak2gpe_hs", "akgp_hs", "adhap_hs"),
        ),
    ),
    "PS": (
        LipidClass(
            "phosphatidylserine", (6, 10, 1, 10, 1, 0), 2, "PTDSS1 PTDSS2 PISD ABHD16A PLA1A",
            "34:1 34:2 36:1 36:2 36:3 36:4 38:1 38:3 38:4 38:5 38:6 40:4 40:5 40:6 40:7", _FLIP, ("ps_hs",),
        ),
    ),
    "PI": (
        LipidClass(
            "phosphatidylinositol", (9, 15, 0, 13, 1, 0), 2,
            "CDIPT CDS1 CDS2 MBOAT7 PI4KA PI4KB PIK3C3 PIK3CA PLCB1 PLCG1 SYNJ1",
            "32:1 34:1 34:2 36:1 36:2 36:3 36:4 38:3 38:4 38:5 38:6 40:4 40:5 40:6", "PITPNB", ("pail_hs", "cdpdag_hs"),
        ),
    ),
    "PG": (
        LipidClass(
            "phosphatidylglycerol", (6, 11, 0, 10, 1, 0), 2, "PGS1 PTPMT1 CRLS1 LPGAT1",
            "32:0 34:1 34:2 36:1 36:2 36:4 38:4 38:5 38:6 40:6 40:7 40:8 44:12",
            "", ("pglyc_hs", "pgp_hs"), ("BMP {}",),
        ),
    ),
    "PA": (
        LipidClass(
            "phosphatidate", (3, 5, 0, 8, 1, 0), 2,
            "AGPAT1 AGPAT2 AGPAT3 PLD1 PLD2 DGKA DGKZ LPIN1 LPIN2 LPIN3 CDS1 CDS2",
            "32:0 34:1 34:2 36:1 36:2 36:3 36:4 38:4 38:5 38:6 40:6", "", ("pa_hs", "cdpdag_hs"),
        ),
    ),
    "SM": (
        LipidClass(
            "sphingomyelin", (5, 13, 2, 6, 1, 0), 0, "SGMS1 SGMS2 SMPD1 SMPD2 SMPD3 CERT1 ENPP7",
            "32:1 33:1 34:0 34:1 34:2 36:0 36:1 36:2 38:1 38:2 39:1 40:1 40:2 41:1 41:2 42:1 42:2 42:3 43:1",
            "", ("sphmyln_hs", "crm_hs"), ("SM d{}",),
        ),
    ),
    "Cer": (
        LipidClass(
            "ceramide", (0, 1, 1, 3, 0, 0), 0,
            "SPTLC1 SPTLC2 DEGS1 SGMS1 UGCG UGT8 ASAH1 SMPD1 SMPD3 GBA1 CERK",
            "32:1 34:0 34:1 34:2 36:1 36:2 38:1 40:1 40:2 41:1 42:0 42:1 42:2 42:3 44:1", "CERT1", ("crm_hs", "dhcrm_hs"), ("Cer d{}",),
        ),
    ),
    "CerP": (
        LipidClass(
            "ceramide phosphate", (0, 2, 1, 6, 1, 0), 0, "CERK PLPP1 PLPP2 PLPP3",
            "34:1 36:1 42:2", "", ("crmp_hs",), ("CerP d{}", "C1P {}"),
        ),
    ),
    "HexCer": (
        LipidClass(
            "hexosylceramide", (6, 11, 1, 8, 0, 0), 0, "UGCG UGT8 GBA1 GBA2 GALC B4GALT5 B4GALT6",
            "34:1 36:1 38:1 40:1 40:2 41:1 42:1 42:2 42:3 40:1;O3 42:1;O3 42:2;O3",
            "GLTP", ("gluside_hs", "galside_hs"), ("HexCer d{}", "GlcCer {}", "GalCer {}", "GlcCer d{}", "GalCer d{}"), ("FA2H",),
        ),
    ),
    "Hex2Cer": (
        LipidClass(
            "lactosylceramide", (12, 21, 1, 13, 0, 0), 0, "B4GALT5 B4GALT6 ST3GAL5 A4GALT GLB1",
            "34:1 36:1 40:1 42:1 42:2", "", ("digalside_hs", "galgluside_hs", "gluside_hs"), ("Hex2Cer d{}", "LacCer {}", "LacCer d{}"),
        ),
    ),
    "Hex3Cer": (
        LipidClass(
            "globotriaosylceramide", (18, 31, 1, 18, 0, 0), 0, "A4GALT GLA B3GALNT1",
            "34:1 40:1 42:1 42:2", "", ("thcrm_hs", "galgalthcrm_hs", "galgluside_hs", "digalside_hs"), ("Hex3Cer d{}", "Gb3 {}", "Gb3 d{}"),
        ),
    ),
    "SHexCer": (
        LipidClass(
            "sulfatide", (6, 11, 1, 11, 0, 1), 0, "GAL3ST1 UGT8 ARSA PSAP",
            "34:1 36:1 38:1 40:1 40:2 41:1 42:1 42:2 42:3 40:1;O3 42:1;O3 42:2;O3",
            "", ("sgalside_hs", "galside_hs"), ("SHexCer d{}", "sulfatide {}", "ST {}"), ("FA2H",),
        ),
    ),
    "LPC": (
        LipidClass(
            "lysophosphatidylcholine", (8, 18, 1, 7, 1, 0), 1,
            f"{_REMODEL} LPCAT4 PLA2G4A PLA2G6 PLA2G7 LCAT ENPP2 LYPLA1 PNPLA6 PNPLA7",
            "14:0 15:0 16:0 16:1 17:0 18:0 18:1 18:2 18:3 20:0 20:1 20:3 20:4 20:5 22:4 22:5 22:6",
            "MFSD2A SPNS1", ("lpchol_hs",), ("LysoPC {}",),
        ),
        LipidClass(
            "lysophosphatidylcholine", (8, 18, 1, 7, 1, 0), 1, f"{_ETHER} {_REMODEL} PAFAH1B2 PAFAH2",
            "O-16:0 O-16:1 O-18:0 O-18:1", "", ("ak2lgchol_hs", "ak2gchol_hs", "paf_hs", "akgp_hs", "adhap_hs"), ("LysoPC {}", "lyso-PAF {}"),
        ),
    ),
    "LPE": (
        LipidClass(
            "lysophosphatidylethanolamine", (5, 12, 1, 7, 1, 0), 1,
            "MBOAT1 MBOAT2 LPCAT3 PLA2G4A PLA2G6 LYPLA1",
            "16:0 16:1 18:0 18:1 18:2 20:3 20:4 20:5 22:4 22:5 22:6", "MFSD2A SPNS1", ("pe_hs", "peole_hs", "pepalm_hs"), ("LysoPE {}",),
        ),
        LipidClass(
            "lysophosphatidylethanolamine", (5, 12, 1, 7, 1, 0), 1, f"{_ETHER} SELENOI PEDS1 PLA2G6",
            "O-16:1 O-18:1 O-18:2", "", ("ak2gpe_hs", "dak2gpe_hs", "akgp_hs", "adhap_hs"), ("LysoPE {}",),
        ),
    ),
    "LPA": (
        LipidClass(
            "lysophosphatidate", (3, 7, 0, 7, 1, 0), 1,
            "ENPP2 AGPAT1 AGPAT2 GPAM PLPP1 PLPP3 PLA2G4A AGK", "16:0 18:0 18:1 18:2 20:4 22:6", "", ("alpa_hs", "pa_hs"), ("LysoPA {}",),
        ),
    ),
    "LPI": (
        LipidClass(
            "lysophosphatidylinositol", (9, 17, 0, 12, 1, 0), 1,
            "MBOAT7 PLA2G4A DDHD1 PLA2G6", "16:0 18:0 18:1 20:4", "ABCC1", ("pail_hs",), ("LysoPI {}",),
        ),
    ),
    "LPS": (
        LipidClass(
            "lysophosphatidylserine", (6, 12, 1, 9, 1, 0), 1, "ABHD16A ABHD12 PLA1A LPCAT3 MBOAT1",
            "18:0 18:1 20:4 22:6", "", ("ps_hs",), ("LysoPS {}",),
        ),
    ),
    "LPG": (
        LipidClass(
            "lysophosphatidylglycerol", (6, 13, 0, 9, 1, 0), 1, "LPGAT1 LPCAT1 PLA2G4A",
            "16:0 18:0 18:1", "", ("pglyc_hs",), ("LysoPG {}",),
        ),
    ),
    "MG": (
        LipidClass(
            "monoacylglycerol", (3, 6, 0, 4, 0, 0), 1, "MGLL ABHD6 MOGAT1 MOGAT2 LIPE",
            "16:0 18:0 18:1 18:2", "", ("mag_hs", "magole_hs", "dag_hs"), ("MAG {}",),
        ),
    ),
    "DG": (
        LipidClass(
            "diacylglycerol", (3, 4, 0, 5, 0, 0), 2,
            "DGAT1 DGAT2 DGKA DGKZ LPIN1 LPIN2 PNPLA2 LIPE PLCB1 PLCG1 DAGLA MOGAT2",
            "32:0 32:1 34:0 34:1 34:2 36:1 36:2 36:3 36:4 38:4 38:5 38:6 40:6", "", ("dag_hs",), ("DAG {}",),
        ),
    ),
    "TG": (
        LipidClass(
            "triacylglycerol", (3, 2, 0, 6, 0, 0), 3,
            "DGAT1 DGAT2 PNPLA2 PNPLA3 LIPE LPL PLIN1 PLIN2 ABHD5",
            "46:1 48:0 48:1 48:2 48:3 50:0 50:1 50:2 50:3 50:4 52:1 52:2 52:3 52:4 52:5 54:1 54:2 54:3 54:4 54:5 54:6 56:5 56:6 56:7 56:8 58:8",
            "MTTP", ("tag_hs", "dag_hs"), ("TAG {}",),
        ),
    ),
    "CE": (
        LipidClass(
            "cholesteryl ester", (27, 44, 0, 2, 0, 0), 1, "SOAT1 SOAT2 LCAT LIPA",
            "16:0 16:1 18:0 18:2 18:3 20:3 20:4 20:5 22:6", "SCARB1", ("xolest_hs", "xolest2_hs", "xolest182_hs", "xolest204_hs"), ("cholesteryl ester {}",),
        ),
    ),
    "CL": (
        LipidClass(
            "cardiolipin", (9, 14, 0, 17, 2, 0), 4, "CRLS1 TAFAZZIN PGS1 PTPMT1 HADHA LCLAT1 PLA2G6",
            "68:4 70:5 70:6 70:7 72:5 72:6 72:7 72:8 72:9 74:8 74:9 74:10 76:11 76:12", "", ("clpn_hs", "pglyc_hs", "pgp_hs"), ("cardiolipin {}",),
        ),
    ),
    "GM3": (
        LipidClass(
            "ganglioside", (23, 38, 2, 21, 0, 0), 0, "ST3GAL5 B4GALNT1 NEU3 NEU1 UGCG B4GALT5",
            "34:1 36:1 38:1 40:1 42:1 42:2", "", ("gm3_hs", "gluside_hs"), ("GM3 d{}",),
        ),
    ),
    "GM2": (
        LipidClass(
            "ganglioside", (31, 51, 3, 26, 0, 0), 0, "B4GALNT1 HEXA HEXB GM2A B3GALT4 NEU3",
            "34:1 36:1 38:1", "", ("gm2_hs", "gm2a_hs"), ("GM2 d{}",),
        ),
    ),
    "GM1": (
        LipidClass(
            "ganglioside", (37, 61, 3, 31, 0, 0), 0, "B3GALT4 B4GALNT1 GLB1 GM2A",
            "36:1 38:1", "", ("gm1_hs", "gm1a_hs"), ("GM1 d{}",),
        ),
    ),
    "GD1": (
        LipidClass(
            "ganglioside", (48, 78, 4, 39, 0, 0), 0, "ST3GAL2 ST8SIA1 ST8SIA5 B4GALNT1 NEU3",
            "36:1 38:1", "", ("gd1a_hs", "gd1b_hs"), ("GD1 d{}", "GD1a {}", "GD1b {}"),
        ),
    ),
    "GD3": (
        LipidClass(
            "ganglioside", (34, 55, 3, 29, 0, 0), 0, "ST8SIA1 B4GALNT1 NEU3",
            "34:1 36:1", "", ("gd3_hs",), ("GD3 d{}",),
        ),
    ),
}  # fmt: skip
"""Species of each class by its abbreviation, of esters first and of ethers second.

Species that are rare in tissue, such as phospholipids of two saturated chains other than the commonest, are left out:
as candidates for a mass they would stand beside, or before, the likely ones.
"""
