"""The public sources of the paper's mixtures, a record per source.

What a source holds, its licence and its quirks stand above it. Formats were taken from stored
copies of the hub, not from the live one; whatever differs is refused when it is read. To add a
source, add its name to `SourceName` (merit.config.data), what it holds to
merit/check/estimate.yaml, and a record here; a format that no record has yet takes a function in
`convert`.
"""

from __future__ import annotations

from merit.data.records import Source, json_lines, json_list, parquet_rows
from merit.data.sources import convert

CAULDRON = (
    *("ai2d", "aokvqa", "chart2text", "chartqa", "clevr", "clevr_math", "cocoqa", "datikz"),
    *("diagram_image_to_text", "docvqa", "dvqa", "figureqa", "finqa", "geomverse"),
    *("hateful_memes", "hitab", "iam", "iconqa", "infographic_vqa", "intergps"),
    *("localized_narratives", "mapqa", "mimic_cgd", "multihiertt", "nlvr2", "ocrvqa", "okvqa"),
    *("plotqa", "raven", "rendered_text", "robut_sqa", "robut_wikisql", "robut_wtq", "scienceqa"),
    *("screen2words", "spot_the_diff", "st_vqa", "tabmwp", "tallyqa", "tat_qa", "textcaps"),
    *("textvqa", "tqa", "vistext", "visual7w", "visualmrc", "vqarad", "vqav2", "vsr", "websight"),
)
FLAN = (
    *("aeslc", "ag_news_subset", "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy"),
    *("bool_q", "cb", "cnn_dailymail", "cola", "common_gen", "copa", "coqa", "cosmos_qa", "dart"),
    *("definite_pronoun_resolution", "drop", "e2e_nlg", "fix_punct", "gigaword", "glue_mrpc"),
    *("glue_qqp", "hellaswag", "imdb_reviews", "math_dataset", "mnli_matched", "mnli_mismatched"),
    *("multi_news", "multirc", "natural_questions", "openbookqa", "opinion_abstracts_idebate"),
    *("opinion_abstracts_rotten_tomatoes", "para_crawl_enes", "paws_wiki", "piqa", "qnli", "quac"),
    *("record", "rte", "samsum", "sentiment140", "snli", "squad_v1", "squad_v2", "sst2"),
    *("story_cloze", "stsb", "trec", "trivia_qa", "true_case", "web_nlg_en", "wic"),
    *("wiki_lingua_english_en", "wmt14_enfr", "wmt16_translate_csen", "wmt16_translate_deen"),
    *("wmt16_translate_fien", "wmt16_translate_roen", "wmt16_translate_ruen"),
    *("wmt16_translate_tren", "wnli", "word_segment", "wsc", "yelp_polarity_reviews"),
)

PUBLIC = {
    # 191 tasks of about 1,000. `id` is not unique and its prefix not the task, so tasks are told by
    # `task_name` and records by their number. `<image>` stands first or last in the prompt and
    # stays there. Names beyond ASCII are `#U00e9` in the zip (181,394 images). One answer is empty.
    # Which 136 tasks the MERIT paper uses is not published. Several of 101 underlying datasets are
    # non-commercial or for research only.
    "vision_flan_1k": Source(
        repository="Vision-Flan/vision-flan_191-task_1k",
        revision="24ba71985e7424afe1262bfe302b022ae1c76ce8",
        licence="none stated; each underlying dataset's own",
        files="annotation_191-task_1k.json",
        archives=("image_191-task_1k.zip|images_191task_1k",),
        read=json_list,
        convert=convert.llava(
            lambda record, images: (
                images.member("image_191-task_1k.zip", record.get("image"), "images_191task_1k"),
            )
        ),
        task_of=lambda value: str(value.get("task_name") or ""),
        num_records=186_103,
    ),
    # The full release, 187 tasks. `load_dataset` takes it for an image folder without text. How the
    # images lie in its zips, and after its `unzip.sh`, is not documented: they are found by file
    # name, and of several (`method_1_step_6.jpg`) the one beside the task's name is taken.
    "vision_flan": Source(
        repository="Vision-Flan/vision-flan",
        revision="e8c6f09736277ef63b33dea5e9bbe94392dba76c",
        licence="none stated; each underlying dataset's own",
        files="vision_flan.json",
        archives=("shard_*/**/*",),
        read=json_list,
        convert=convert.llava(
            lambda record, images: (images.by_file_name(record.get("image"), record.task),)
        ),
        task_of=lambda value: str(value.get("task_name") or ""),
        num_records=1_664_261,
    ),
    # 50 tasks, 1.88M rows of images and `texts`: several questions about them (dozens in clevr) are
    # one conversation unless `max_turns` splits it. Several images in nlvr2, spot_the_diff and
    # mimic_cgd. No `<image>` anywhere. Image modes P, L, RGBA and CMYK are read as RGB. clevr_math
    # and okvqa have rows without images: bad records. "Answer: B" is text and stays. Licences:
    # chartqa GPL-3.0, hateful_memes research only, scienceqa CC BY-NC-SA, tqa CC BY-NC, ...
    "the_cauldron": Source(
        repository="HuggingFaceM4/the_cauldron",
        revision="847a98a779b1652d65111daf20c972dfcd333605",
        licence="prompts CC BY 4.0; each sub-dataset's own",
        files="{task}/train-*.parquet",
        images="rows",
        read=parquet_rows("images.path", "texts"),
        convert=convert.row_questions,
        tasks=CAULDRON,
    ),
    # 222 or 223 thousand records, by its name or the hub's viewer. Images of both coco/train2017
    # and coco/val2017; a record without `image` is a conversation without images.
    "lvis_instruct4v": Source(
        repository="X2FD/LVIS-Instruct4V",
        revision="49b7d3f2462c675aa6da3b4ed59bc5b93a241e6e",
        licence="MIT (GitHub); images: COCO's",
        files="lvis_instruct4v_220k.json",
        images="shared",
        read=json_list,
        convert=convert.llava(convert.image_if_named),
        tasks=("lvis_instruct4v",),
    ),
    # Preference data, on which the paper trains without saying how: here the answer to the last
    # question is `output_{preference}`. Images are named without a folder, and readers differ.
    "llava_preference": Source(
        repository="zhiqings/LLaVA-Human-Preference-10K",
        revision="e60c9e520dde0c331f1b833ec991789ed238554c",
        licence="Apache-2.0; images: COCO's",
        files="llava_7b_v1_preference.json",
        images="shared",
        read=json_list,
        convert=convert.preferred,
        tasks=("llava_preference",),
    ),
    # The paper names hub VictorSanh/LrvInstruction, a loading script without data. 120 to 300
    # thousand records. `task` in them (16) is a kind of question: the paper counts one task.
    "lrv_instruction": Source(
        repository=None,
        revision=None,
        licence="BSD-3; images: Visual Genome's",
        files="filter_cap*.json",
        images="shared",
        read=json_list,
        convert=convert.genome_question,
        tasks=("lrv_instruction",),
        hint="it is on Google Drive only and cannot be fetched: take the links of download.txt in "
        "https://github.com/FuxiaoLiu/LRV-Instruction and lay the files there",
    ),
    # Links to images, many of them dead, none pinned: the result cannot be reproduced. The user
    # fetches them and lists them in `fetched.jsonl`, `file` relative to the folder. A row without a
    # file, or whose file has another hash, is a bad record: `on_bad_record: skip` belongs to it.
    "laion_gpt4v": Source(
        repository="laion/gpt4v-dataset",
        revision="99a9caf",
        licence="CC0-1.0; images: their owners'",
        files="data/train-*.parquet",
        read=convert.fetched_rows,
        convert=convert.fetched_image,
        tasks=("laion_gpt4v",),
        num_records=12_356,
    ),
    # Gated; the revision is the one that others pin. 977 safe records of two instructions, 1,023
    # unsafe ones of one. The authors shuffle (seed 0) and write no newline after `<image>`; here
    # the order is the file's and the newline stands. One id and image occur twice.
    "vlguard": Source(
        repository="ys-zong/VLGuard",
        revision="b0be37a1ab7accb14e10d6a0ec3ce62cfaff2d46",
        licence="stated behind the gate; images: each its own",
        files="train.json",
        archives=("train.zip|train",),
        read=json_list,
        convert=convert.safety_turns,
        tasks=("vlguard",),
        num_records=2_000,
    ),
    # Stage 1 of a LLaVA-style base. One turn: an instruction with `<image>` first or last, and a
    # caption.
    "llava_pretrain": Source(
        repository="liuhaotian/LLaVA-Pretrain",
        revision="70f9d1e5e1a697fe35830875cfc7de1dd590d727",
        licence="other: LAION's, CC's and SBU's terms",
        files="blip_laion_cc_sbu_558k.json",
        archives=("images.zip|00000",),
        read=json_list,
        convert=convert.caption,
        tasks=("llava_pretrain",),
        num_records=558_128,
    ),
    # coco 364,100, vg 86,417, gqa 72,140, ocr_vqa 80,000, textvqa 21,953, text 40,688 (ShareGPT: no
    # `image`; a conversation that begins with an answer loses it, as in LLaVA). 355 OCR-VQA images
    # can no longer be downloaded (mirror: hub ej2/llava-ocr-vqa), 1437717772.jpg is corrupt: bad
    # records. GIF and PNG files named .jpg are read as what they are.
    "llava_mix665k": Source(
        repository="liuhaotian/LLaVA-Instruct-150K",
        revision="9d451dc7629cfe0469f6ae4432b765cd603d5fcb",
        licence="CC BY 4.0; images: each dataset's own",
        files="llava_v1_5_mix665k.json",
        images="shared",
        read=json_list,
        convert=convert.llava(convert.image_or_text),
        tasks=("coco", "gqa", "ocr_vqa", "text", "textvqa", "vg"),
        task_of=convert.first_folder,
        num_records=665_298,
    ),
    # 250 parquet files; the same as raw archives is not fetched. A row without an image is text.
    "llava_next": Source(
        repository="lmms-lab/LLaVA-NeXT-Data",
        revision="c8aef391ce214167c4ebc7f06bc05a50dee2e75f",
        licence="Apache-2.0 (card); each underlying dataset's own",
        files="data/train-*.parquet",
        images="rows",
        read=parquet_rows("id", "conversations", "data_source", "image.path"),
        convert=convert.llava(convert.row_image),
        task_of=lambda value: str(value["data_source"] or ""),
        num_records=779_289,
    ),
    # Stage 1.5 of the scaled base: 281 parquet files, long captions of CC3M's images.
    "llava_recap_cc3m": Source(
        repository="lmms-lab/LLaVA-ReCap-CC3M",
        revision="9ffc2b0",
        licence="not recorded; images: Conceptual Captions'",
        files="data/train-*.parquet",
        images="rows",
        read=parquet_rows("id", "conversations", "image.path"),
        convert=convert.llava(convert.needed_row_image),
        tasks=("llava_recap_cc3m",),
        num_records=2_857_560,
    ),
    # 66 text tasks, 1.4M or 2.77M lines, by whom one asks. bool_q, hellaswag, arc_easy and
    # arc_challenge are training sets of benchmarks of the paper's table 4.
    "flan": Source(
        repository="Muennighoff/flan",
        revision="049702ca5ffc5b3c62bf226aac67ba1493e8d548",
        licence="none stated; each underlying dataset's own",
        files="train/{task}_10templates_train.jsonl",
        images="none",
        read=json_lines,
        convert=convert.template,
        tasks=FLAN,
    ),
}
