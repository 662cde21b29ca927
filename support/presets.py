"""Presets: options of train.py, read before the user's own. The defaults of train.py are those of the paper."""

PRESETS = {
    "paper": "",
    "miniature": """
        --model runs/miniature/base --data riddles-train --validation_data riddles-validation --eval_data riddles-test
        --steps 60 --dialogues 512 --minibatches 4 --lr 6e-4 --critic_lr 2e-3 --gae_lambda 0.95 --kl_coef 0.02
        --max_new_tokens 160 --micro_batch_tokens 2048 --save_every 50""",
    "smollm2": """
        --model runs/smollm2/base --data mawps-easy-train --validation_data mawps-easy-validation
        --eval_data mawps-easy-test,svamp-easy --max_attempts 3 --group_size 8 --drop_uniform_groups --minibatches 2
        --lr 5e-5 --max_new_tokens 256 --max_attempt_tokens 32 --save_every 8 --show_every 1
        --steps 64 --dialogues 64 --micro_batch_tokens 1024""",
    "smoke": """
        --model runs/smoke/base --data riddles-train --validation_data riddles-validation --eval_every 1 --steps 2
        --eval_data riddles-validation --eval_limit 8 --dialogues 8 --eval_attempts 3 --minibatches 2 --lr 1e-4
        --wrong_reward -0.25 --max_new_tokens 96 --max_attempt_tokens 24 --slots 4 --save_every 1 --show_every 1""",
}
PRESETS["cue"] = PRESETS["miniature"].replace("riddles", "riddles-cue") + " --model runs/cue/base --steps 100"
PRESETS["smollm2-gpu"] = f"{PRESETS['smollm2']} --steps 40 --dialogues 512 --micro_batch_tokens 16384 --compile false"
