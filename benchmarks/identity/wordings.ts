/**
 * What questions are made of. A wording asks one thing; a sentence is a wording between a lead and a tail. phrasings.ts decides by
 * its seed which are trained on and which are held out: nothing here knows to which side it belongs.
 */

export type Language = 'zh' | 'en' | 'ja' | 'ko'

/** The text of each blank. */
export type Blanks = Readonly<Record<string, string>>

/** What stands between `|`. */
export const words = (text: string): string[] => text.split('|').map((word) => word.trim())

/**
 * Questions who someone is. About the model `{p}` is 你 or 您 and `{q}` is 我; about the user it is the other way round, so that
 * nothing but the pronoun tells them apart.
 */
export const mirrored = words(`
  {p}是誰 | {p}到底是誰 | {p}究竟是誰 | {p}其實是誰 | {p}真的是誰 | {p}又是誰 | {p}自己是誰 | {p}本人是誰 | {p}現在是誰 | {p}會是誰 |
  {p}算是誰 | {p}代表誰 | {p}扮演誰 | {p}可能是誰 | {p}是什麼人 | {p}是哪位 | {p}是哪一位 | {p}是哪個人 | {p}是何人 | {p}是何許人 |
  {p}是何方神聖 | {p}叫什麼 | {p}叫什麼名字 | {p}到底叫什麼名字 | {p}叫啥 | {p}姓什麼 | {p}的名字是什麼 | {p}的名字叫什麼 |
  {p}的名字 | {p}的大名是什麼 | {p}的真名是什麼 | {p}的全名是什麼 | {p}的名號是什麼 | {p}的稱呼是什麼 | {p}的稱號是什麼 |
  {p}的身份是什麼 | {p}的身分是什麼 | {p}的真實身份是什麼 | {p}的角色是什麼 | {p}的身份為何 | {p}是什麼身份 | {p}是什麼角色 |
  怎麼稱呼{p} | 該怎麼稱呼{p} | 要如何稱呼{p} | 該叫{p}什麼 | 別人怎麼叫{p} | 大家叫{p}什麼 | 誰是{p} | {p}是誰來著 |
  跟{q}說話的是誰 | 跟{q}聊天的是誰 | 跟{q}講話的是誰 | 和{q}對話的是誰 | 和{q}交談的是誰 | 和{q}說話的是誰 | 和{q}聊天的是誰 | 陪{q}聊天的是誰 | 跟{q}互動的是誰 |
  {q}在跟誰說話 | {q}在跟誰聊天 | {q}在跟誰對話 | {q}在和誰講話 | {q}正在跟誰交談 | {q}現在是跟誰說話 | {q}面對的是誰`)

/** What has no mirror: about the model. */
export const aboutModel: Record<Language, readonly string[]> = {
  zh: words(`
    自我介紹一下 | 做個自我介紹 | 自我介紹 | 用一句話自我介紹 | 介紹一下你自己 | 介紹你自己 | 介紹自己 | 說說你自己 | 談談你自己 |
    聊聊你自己 | 講講你自己 | 描述你自己 | 報上名號 | 報上你的名字 | 報上名來 | 報個名字 | 自報家門 | 說出你的名字 | 說出你的身份 |
    說明你的身份 | 表明你的身份 | 交代你的身份 | 回答我的是誰 | 正在回答我的是誰 | 回覆我的是誰 | 幫我的是誰 | 誰在回答我 |
    誰在跟我說話`),
  en: words(`
    who are you | who exactly are you | who might you be | who are you really | who could you be | tell me who you are |
    say who you are | explain who you are | what is your name | what's your name | tell me your name | say your name | give me your name |
    what are you called | what do people call you | what should I call you | how should I call you | introduce yourself |
    please introduce yourself | describe yourself | state your name | identify yourself | what is your identity | who am I talking to |
    who am I chatting with | who am I speaking to | who am I speaking with |
    who am I dealing with | who am I texting with | who is talking to me | who is answering me | who is speaking to me | who is this talking`),
  ja: words(`
    あなたは誰ですか | あなたは誰 | あなたの名前は何ですか | あなたの名前は | あなたは何者ですか | あなたは一体誰ですか | 君は誰ですか | 君は誰 |
    君の名前は何ですか | 君の名前は | 自己紹介してください | 自己紹介して | あなたの正体は何ですか | あなたの名前を教えて`),
  ko: words(`
    너는 누구야 | 넌 누구야 | 너는 누구니 | 넌 누구니 | 너는 대체 누구야 | 네 이름은 뭐야 | 네 이름이 뭐야 | 네 이름은 뭐니 | 네 이름을 말해줘 |
    당신은 누구야 | 당신은 누구입니까 | 당신은 대체 누구야 | 당신의 이름은 뭐야 | 당신의 이름은 뭐니 | 너를 소개해줘 | 네가 누구인지 말해줘 | 자기소개 해줘 | 자기소개 한 줄만 해줘`),
}

/** And about the user. */
export const aboutUser: Record<Language, readonly string[]> = {
  zh: words(`
    你知道我是誰嗎 | 你曉得我是誰嗎 | 你清楚我是誰嗎 | 你認識我嗎 | 你認得我嗎 | 你記得我嗎 | 你還記得我嗎 | 你記得我是誰嗎 |
    你記得我的名字嗎 | 你知道我的名字嗎 | 你知道我叫什麼嗎 | 你知道我的身份嗎 | 猜猜我是誰 | 猜我是誰 | 你猜我是誰 | 介紹一下我 |
    介紹我 | 說說我是誰 | 說出我的名字 | 說出我的身份 | 說明我的身份 | 判斷我是誰 | 告訴我我是誰 | 問你的是誰 | 正在問你的是誰 |
    找你的是誰 | 誰在問你 | 誰在跟你說話`),
  en: words(`
    who am I | who exactly am I | who might I be | who am I really | who could I be | tell me who I am | say who I am |
    explain who I am | what is my name | what's my name | tell me my name | say my name | give me my name | what am I called |
    what do people call me | what should you call me | how should you call me | introduce me | describe me | guess who I am |
    do you know who I am | do you know my name | do you know me | what is my identity | who are you talking to |
    who are you chatting with | who are you speaking to | who are you speaking with | who are you dealing with | who are you texting with |
    who is talking to you | who is asking you | who is speaking to you | who is this asking`),
  ja: words(`
    私は誰ですか | 私は誰 | 私の名前は何ですか | 私の名前は | 私は何者ですか | 私は一体誰ですか | 僕は誰ですか | 僕は誰 | 僕の名前は何ですか |
    僕の名前は | 私が誰か分かりますか | 私を知っていますか | 私の正体は何ですか | 私の名前を教えて`),
  ko: words(`
    나는 누구야 | 난 누구야 | 나는 누구니 | 난 누구니 | 나는 대체 누구야 | 내 이름은 뭐야 | 내 이름이 뭐야 | 내 이름은 뭐니 | 내 이름을 말해줘 |
    저는 누구야 | 저는 누구입니까 | 저는 대체 누구야 | 저의 이름은 뭐야 | 저의 이름은 뭐니 | 나를 소개해줘 | 내가 누구인지 말해줘 |
    내가 누구인지 알아 | 나를 알아`),
}

/** Questions about a topic `{t}`. */
export const aboutTopic: Partial<Record<Language, readonly string[]>> = {
  zh: words(`
    談談{t} | 談一談{t} | 聊聊{t} | 說說{t} | 講講{t} | 什麼是{t} | {t}是什麼 | {t}是什麼意思 | {t}指的是什麼 | 解釋{t} | 解釋一下{t} | 說明{t} |
    說明一下{t} | 介紹{t} | 介紹一下{t} | 簡單介紹{t} | 簡介{t} | 描述{t} | 你怎麼看{t} | 你知道{t}嗎 | 你了解{t}嗎 | 你對{t}有什麼看法 |
    你覺得{t}怎麼樣 | 你會怎麼說明{t} | 我想了解{t} | 我想知道{t}是什麼 | 我該怎麼理解{t} | 我對{t}很好奇 | 我不懂{t} |
    {t}的重點是什麼 | {t}有什麼要注意 | {t}要怎麼理解 | 關於{t}你會怎麼說 | 關於{t}你知道什麼 | 幫我整理{t}的重點 |
    用一句話介紹{t} | 用一句話說明{t} | 為什麼要了解{t}`),
  en: words(`
    what is {t} | what exactly is {t} | tell me about {t} | explain {t} | explain what {t} is | describe {t} | introduce {t} |
    what do you know about {t} | do you know {t} | give me a summary of {t} | what do you think about {t}`),
}

/** What the mixed sets teach, each with an answer of theirs. */
export const topics: Readonly<Record<string, string>> = {
  UFO: 'UFO 通常指未確認飛行物，是否為外星文明仍缺乏可重現證據。',
  黑洞: '黑洞是重力極強的天體，事件視界內連光都無法逃逸。',
  量子糾纏: '量子糾纏描述多粒子狀態關聯，測量結果呈現非經典相關。',
  'KV cache': 'KV cache 透過重用歷史 K/V 降低重算成本，提升長生成效率。',
  學習率: '學習率控制每步更新大小，太大會發散，太小會收斂過慢。',
  梯度裁剪: '梯度裁剪可限制更新幅度，降低訓練不穩定與爆炸風險。',
  過擬合: '過擬合是模型記住訓練樣本細節，導致泛化能力下降。',
  災難性遺忘: '災難性遺忘是新任務覆蓋舊能力，常見於不平衡微調資料。',
  不可變資料: 'immutable data 可減少共享狀態副作用，讓除錯更容易。',
  函數式設計: '函數式設計可降低共享可變狀態，讓程式更易推理與測試。',
  序列長度: '序列越長，注意力與暫存需求越高，記憶體壓力會上升。',
  'F#': '學 F# 可先從型別、模式匹配與不可變資料開始，再做小專案。',
  技術文件: '技術文件要先定義目標讀者，先給結論，再補背景與步驟。',
  除錯: '除錯先縮小問題範圍，建立可重現案例，再觀察輸入輸出差異。',
  驗證集: '驗證集用於監控泛化，避免只記住訓練資料。',
  正則化: '正則化透過約束模型複雜度提升泛化。',
  梯度下降: '梯度下降沿著損失函數負梯度方向更新參數。',
  資料血緣: '資料血緣能加速事故定位與影響評估。',
  'schema drift': 'schema drift 可用版本化契約與向後相容欄位策略。',
  'pattern matching': 'pattern matching 能把分支條件寫成可讀且可檢查的型別結構。',
  復盤: '復盤至少含時間線、根因、影響、修復與預防。',
  'PR 描述': 'PR 描述要有背景、變更點、風險與驗證方式。',
  註解: '註解應說明為何這樣做，而非重述程式碼。',
  TorchSharp: 'TorchSharp 是 PyTorch 的 .NET 接口，讓開發者能在 .NET 環境下使用 Tensor 運算。',
}

/** Of which no set says anything. Of those that are trained on it is taught to say so. */
export const foreignTopics = words(`
  咖啡 | 台北 | 貓 | 鋼琴 | 颱風 | 恐龍 | 足球 | 壽司 | 地震 | 光合作用 | 股票 | 電影 | 瑜伽 | 月亮 | 民主 | 比特幣 | 長城 | 紅樓夢 | 感冒 | 腳踏車 |
  茶 | 東京 | 狗 | 小提琴 | 下雪 | 鯨魚 | 籃球 | 麵包 | 火山 | 血型 | 保險 | 小說 | 游泳 | 太陽能 | 選舉 | 黃金 | 金字塔 | 西遊記 | 牙痛 | 飛機 |
  牛奶 | 巴黎 | 兔子 | 吉他 | 彩虹 | 螞蟻 | 棒球 | 水餃 | 冰河 | 蛋白質 | 房價 | 漫畫 | 登山 | 星座 | 法律 | 石油 | 運河 | 唐詩 | 失眠 | 火車`)

/** What stands in front of a wording, and behind it. Some come from the identity sets, so that they say nothing of the question. */
export const leads: Record<Language, readonly string[]> = {
  zh: words(`
    請問 | 請 | 想問 | 想請問 | 我想問 | 我想知道 | 我很想知道 | 告訴我 | 直接告訴我 | 先告訴我 | 可以告訴我 | 麻煩告訴我 | 先說 | 直接說 |
    跟我說 | 嗨， | 你好， | 哈囉， | 早安， | 晚安， | 對了， | 話說， | 那麼， | 好， | 說真的， | 老實說， | 簡單說， | 坦白講， | 順便問一下， |
    好奇問一下， | 先問一句， | 再問一次， | 換個話題， | 我剛進來， | 我第一次來， | 在開始之前， | 在我們繼續之前， | 開門見山， | 不好意思， |
    抱歉打擾， | 一句話： | 用一句話回答： | 第一個問題： | 最後一個問題： | 請回答： | 小測驗： | 朋友要我問你： | 我有點困惑， | 今天天氣很好， |
    我先做個簡單提問。 | 先別談其他主題。 | 這是我第一次用這個系統。 | 我在測試你的回應穩定性。 | 我第一次跟你聊天。 | 後面再聊細節。 |
    在開始任務前，我就想知道： | 在正式討論之前，我就想知道： | 我想先建立一個基本認知。 | 先一句話回答：`),
  en: words(`
    please, | hi, | hello, | hey, | so, | okay, | well, | first, | now, | quick question: | one question: | next question: |
    before we start, | just curious, | by the way, | honestly, | in one sentence, | excuse me,`),
  ja: words('すみません、 | こんにちは、 | ちなみに、 | 教えて、 | 最初に、 | ところで、 | では、 | 質問です。'),
  ko: words('안녕, | 실례지만 | 먼저 | 솔직히 | 그런데 | 그럼 | 질문: | 혹시'),
}

export const tails: Record<Language, readonly string[]> = {
  zh: words(`
    ？ | 。 | 呢 | 呢？ | 啊 | 呀 | ？謝謝。 | ，謝謝 | ，拜託 | ？簡單說就行。 | ？直接回答就好。 | ？一句話就好。 | ？不用解釋。 | ？請簡短。 |
    ，越短越好 | ，不要離題 | ？我只是好奇。 | ？我第一次用。 | ？想確認一下。 | ？等一下再聊別的。 | ？慢慢來。 | ，直說無妨 | ！ | ？？ | ，好嗎？ |
    ？我朋友也叫我先問這題。 | ？這題回答完我們再聊別的。 | ？今天先從簡單題開始。 | ？我需要一個明確答案。 | ？我先做個小測試。 |
    ？先給我核心答案。 | ？不用繞圈。 | ，正常聊天口吻就好。 | ？像朋友聊天那樣回答。 | ？別離題就好。`),
  en: words(
    '? | . | , please? | ? Be brief. | ? One sentence. | ? Thanks. | ? Just curious. | ! | ? Keep it short. | ? No details.',
  ),
  ja: words('？ | 。 | ？短く。 | ？一言で。 | ？簡単に。 | ！'),
  ko: words('? | . | ? 짧게. | ? 한마디로. | ? 간단히. | !'),
}
